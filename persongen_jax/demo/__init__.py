"""A page in the browser: generate, compare, watch a training (docs/demo.md)."""
