"""Experiments: one ml_collections config per file, each with its command in the docstring."""
