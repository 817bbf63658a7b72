"""Element-wise prompt following: which of the things that a prompt names are in the image."""
