"""The judging networks on images: how each prepares them, and what it makes of them."""
