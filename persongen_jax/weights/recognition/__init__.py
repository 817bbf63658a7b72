"""What a weight file is, by its keys and shapes alone."""
