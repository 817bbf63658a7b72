"""What follows an optimizer's update of a word's embeddings, as in diffusers' advanced script.

Rows that move freely grow far longer than those of the vocabulary, which the text towers know.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Count(NamedTuple):
    """The number of updates so far, a scalar."""

    updates: jax.Array


def stop_after(steps: int) -> optax.GradientTransformation:
    """The update through step ``steps``, then none."""

    def update(updates, state, params=None):
        acts = state.updates < steps
        updates = jax.tree.map(lambda u: jnp.where(acts, u, 0.0), updates)
        return updates, Count(state.updates + 1)

    return optax.GradientTransformation(lambda params: Count(jnp.zeros((), jnp.int32)), update)


def keep_spread(spreads: Mapping[str, float], power: float) -> optax.GradientTransformation:
    """After the update all rows of a table are multiplied by ``(spread / theirs) ** power``.

    Args:
        spreads: the standard deviation of the vocabulary's rows, by the path of the new ones.
        power: 0 changes nothing, 1 gives them the vocabulary's spread at once.
    """

    def update(updates, state, params):
        if params is None:
            raise ValueError("keep_spread needs the weights")

        def one(path, change):
            if isinstance(change, optax.MaskedNode):
                return change
            rows = params[path] + change
            return rows * (spreads[path] / rows.std(ddof=1)) ** power - params[path]

        return {path: one(path, change) for path, change in updates.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
