"""Networks that look at faces."""
