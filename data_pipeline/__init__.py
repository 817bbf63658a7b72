"""Photographs and captions on their way to the training loop."""
