"""SDXL bases: recognising, checking and opening them."""
