"""Measurements, each a command that anyone can rerun; results lie beside them as JSON."""
