"""Compares several methods and seeds: the study command."""
