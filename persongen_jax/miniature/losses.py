"""ArcFace's additive angular margin (Deng et al., arXiv 1801.07698, equation 3)."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

SCALE, MARGIN = 24.0, 0.3  # the paper's 64 and 0.5 are for half a million people


class Centres(nnx.Module):
    """A direction per person, ``embedding`` [people, d]; trained with the network."""

    def __init__(self, people: int, features: int, rngs: nnx.Rngs):
        self.embedding = nnx.Param(0.05 * jax.random.normal(rngs.params(), (people, features)))


def arcface_losses(
    embeddings: jax.Array,
    centres: jax.Array,
    people: jax.Array,
    scale: float = SCALE,
    margin: float = MARGIN,
) -> jax.Array:
    """[b, d] raw embeddings, [n, d] class centres, [b] class indices to a loss each, [b]."""
    embeddings, centres = (
        x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (embeddings, centres)
    )
    cosine = jnp.clip(embeddings @ centres.T, -1 + 1e-6, 1 - 1e-6)
    own = jnp.take_along_axis(cosine, people[:, None], 1)
    moved = jnp.cos(jnp.arccos(own) + margin)
    # Beyond pi - margin the cosine would rise again; continue with a straight line there.
    moved = jnp.where(own > -jnp.cos(margin), moved, own - margin * jnp.sin(margin))
    logits = jnp.where(jnp.arange(len(centres)) == people[:, None], moved, cosine)
    return optax.softmax_cross_entropy_with_integer_labels(scale * logits, people)
