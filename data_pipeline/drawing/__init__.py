"""Procedural portraits: the people, how they are drawn, and the ground truth. See people.py."""
