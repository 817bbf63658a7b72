"""Asking hosts for files: whom, how often, and what they allow."""
