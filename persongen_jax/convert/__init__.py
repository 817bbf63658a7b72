"""Weight files in, out, and described: the convert command."""
