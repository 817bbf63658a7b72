"""Ahead-of-time compilation for TPUs that are not present: the aot command."""
