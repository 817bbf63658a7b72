"""Records of pictures, the manifest, and where they come from."""
