"""Metrics that give every image a value."""
