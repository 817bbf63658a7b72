"""Reads images in all common forms, and finds copies."""
