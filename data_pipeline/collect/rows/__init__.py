"""Reads the lists and folders that a data set is collected from, as rows."""
