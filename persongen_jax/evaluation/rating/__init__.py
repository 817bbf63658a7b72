"""Blind rating by people: a page of shuffled pairs of images, and what its answers say."""
