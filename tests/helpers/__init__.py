"""Shared by tests: twins, small files, small runs."""
