"""Files of identity adapters, one kind in each module."""
