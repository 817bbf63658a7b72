"""Metrics with one number for a whole set of images."""
