"""Measuring speed: the bench command."""
