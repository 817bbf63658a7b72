"""The pixel-space DDPM UNet, and the classifier that judges it."""
