"""The feature cache: outputs of frozen networks on the data, stored on disk."""
