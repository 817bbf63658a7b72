"""Weight files: reading them into named numpy tensors, renaming keys to today's, and writing."""
