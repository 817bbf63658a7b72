"""Training without the condition, or without a part of it, as classifier-free guidance needs it."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from data_pipeline.examples.fields import Batch, Field, flatten, unflatten


def dropped_alone(
    key: jax.Array, drop: jax.Array, drop_prob: float, alone: dict[str, float]
) -> dict[str, jax.Array]:
    """{"drop/NAME": [b]}: ``drop``, or where only this one of ``alone`` is dropped.

    Args:
        drop: [b], True with probability ``drop_prob`` where the whole condition is dropped.
        alone: names and their probabilities, of all examples; no two of them together.

    Raises:
        ValueError: the probabilities add up to more than 1.
    """
    if drop_prob + sum(alone.values()) > 1:
        raise ValueError(
            f"config.drop_prob={drop_prob} and those of {', '.join(alone)} alone "
            f"({', '.join(map(str, alone.values()))}) add up to more than 1"
        )
    # Among the examples that keep something, each is as much more frequent.
    place, start, out = jax.random.uniform(key, drop.shape) * (1 - drop_prob), 0.0, {}
    for name, prob in alone.items():
        out[f"drop/{name}"] = drop | ((start <= place) & (place < start + prob))
        start += prob
    return out


def drop_conditions(
    fields: Iterable[Field],
    batch: Batch,
    drop: jax.Array,
    own: dict[str, jax.Array] | None = None,
) -> Batch:
    """Replace every field by its value without a condition where ``drop`` [b] is True.

    Args:
        own: the same by name for fields with a ``drop_prob`` of their own, and for those that are
            dropped alone as well.
    """
    flat, own = flatten(batch), own or {}
    out = dict(flat)
    for field in fields:
        here = own.get(field.name, drop if field.drop_prob is None else None)
        if here is None:
            continue
        for name, nothing in field.dropped(flat, jnp).items():
            where = here.reshape(here.shape + (1,) * (flat[name].ndim - 1))
            out[name] = jnp.where(where, nothing, flat[name])
    return unflatten(out)
