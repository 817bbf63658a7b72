"""Records of images, the manifest, and their sources."""
