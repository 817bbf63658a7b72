"""Compiling for TPUs that are not there: the aot command."""
