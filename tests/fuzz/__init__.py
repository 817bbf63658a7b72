"""Random damage to files, and what our readers say of it; see __main__.py."""
