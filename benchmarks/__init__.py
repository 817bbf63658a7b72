"""Measurements, each a command that anyone can rerun; results are next to them as JSON."""
