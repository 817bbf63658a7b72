"""Prepares images and captions for the training loop."""
