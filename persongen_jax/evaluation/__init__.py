"""Generating for people and prompts, measuring, and presenting results."""
