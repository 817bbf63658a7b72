"""Systems define what is trained: base.py is their interface, open.py opens them."""
