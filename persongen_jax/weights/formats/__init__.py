"""Formats of weight files: which tools write them, and what their keys mean."""
