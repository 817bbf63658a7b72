"""What the collection of data finds on real faces, and how fast."""
