"""Metrics with a value per image."""
