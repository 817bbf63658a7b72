"""Removes people from everything that a collection has written."""
