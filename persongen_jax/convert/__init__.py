"""Imports, exports and describes weight files: the convert command."""
