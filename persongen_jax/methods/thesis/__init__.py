"""The thesis' own identity methods."""
