"""Training without one part of the condition alone, as classifier-free guidance needs it."""

import jax


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
