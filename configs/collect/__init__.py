"""How data sets are collected; see data_pipeline/collect/settings.py."""
