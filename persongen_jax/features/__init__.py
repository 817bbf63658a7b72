"""The feature cache: what frozen networks make of the data, kept on disk."""
