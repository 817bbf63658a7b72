"""Random damage to files, and how our readers react; see __main__.py."""
