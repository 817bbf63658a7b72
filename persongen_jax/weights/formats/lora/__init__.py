"""Adapter files: LoRA and its relatives, in every spelling that a known tool writes."""
