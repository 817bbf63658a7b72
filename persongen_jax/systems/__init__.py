"""Systems: what is trained. base.py says what training knows of one, open.py opens them."""
