"""The OpenSAFELY RAP API: what portals speak, at `/controller/v1/`; contract in schemas/rap/."""
