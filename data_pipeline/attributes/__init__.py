"""Images with attributes: what an image shows, as yes, no or unknown."""
