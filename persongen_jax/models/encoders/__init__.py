"""Networks that encode text and reference images."""
