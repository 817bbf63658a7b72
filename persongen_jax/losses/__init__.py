"""Losses on decoded images: what ``config.losses`` adds to the objective of any method."""
