"""Reconstruction in pixels: BoLID's L_rec (section 5.2)."""

from typing import Any

import jax
import jax.numpy as jnp

from persongen_jax.losses.base import Decoded, DecodedLoss


class Reconstruction(DecodedLoss):
    """Mean squared difference of the decoded image and the target's, pixels in 0..1.

    The paper writes the squared norm; the mean over pixels keeps its weight free of the image's
    size.
    """

    name, reads_target = "reconstruction", True

    def __call__(self, network: Any, decoded: Decoded) -> tuple[jax.Array, jax.Array]:
        difference = decoded.images - decoded.target()
        return (difference**2).mean((1, 2, 3)), jnp.ones(len(difference), bool)
