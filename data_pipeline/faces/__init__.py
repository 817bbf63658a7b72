"""Detects faces in images, and aligns them."""
