"""Personalised image generation with SDXL in JAX."""
