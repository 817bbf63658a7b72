"""Networks that analyse faces."""
