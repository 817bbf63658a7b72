"""Stable Diffusion XL's UNet and VAE."""
