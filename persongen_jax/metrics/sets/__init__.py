"""Metrics that give a whole set of images one number."""
