"""Generating for people and prompts, measuring, and laying results out."""
