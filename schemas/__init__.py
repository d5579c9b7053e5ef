"""The contracts: one folder per dialect, with its OpenAPI document and examples. Data only, no code."""
