"""Networks that encode text and reference pictures."""
