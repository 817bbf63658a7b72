"""Folders of images that any tool generated: what they hold, and their figures."""
