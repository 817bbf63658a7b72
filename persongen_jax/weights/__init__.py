"""Weight files: read into named numpy tensors, renamed to today's names, and written."""
