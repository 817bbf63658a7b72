"""Finding faces in pictures, and aligning them."""
