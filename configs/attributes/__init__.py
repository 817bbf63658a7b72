"""Diffusion on pixels from attributes: systems/ddpm.py."""
