"""Procedural portraits: who is drawn, how, and what is known about the result. See people.py."""
