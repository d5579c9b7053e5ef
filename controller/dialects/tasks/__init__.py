"""The OpenSAFELY Task API: what upstream's agents speak. Contract in schemas/tasks/openapi.yaml."""
