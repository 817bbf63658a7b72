"""Parts of a condition that training drops alone: how often, and never two of them together."""

import jax
import numpy as np
import pytest

from persongen_jax.systems.dropping import dropped_alone


def test_each_is_as_frequent_as_asked_and_they_exclude_each_other():
    n = 40_000
    drop = jax.random.bernoulli(jax.random.key(0), 0.1, (n,))
    found = dropped_alone(jax.random.key(1), drop, 0.1, {"text": 0.05, "faces": 0.2})
    both, text, faces = (np.asarray(x) for x in (drop, found["drop/text"], found["drop/faces"]))
    assert text[both].all() and faces[both].all()
    alone = text & ~both, faces & ~both
    assert not (alone[0] & alone[1]).any()
    # Three standard deviations of so many draws.
    for own, wanted in zip(alone, (0.05, 0.2), strict=True):
        assert abs(own.mean() - wanted) < 3 * np.sqrt(wanted * (1 - wanted) / n)


def test_too_often_is_said():
    with pytest.raises(ValueError, match=r"drop_prob=0.5 .*text, faces alone \(0.3, 0.3\)"):
        dropped_alone(None, None, 0.5, {"text": 0.3, "faces": 0.3})
