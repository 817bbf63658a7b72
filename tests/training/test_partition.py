"""Which parameters are trained: patterns and groups."""

import pytest

from persongen_jax.training.partition import assign_groups


def test_every_pattern_has_to_match():
    paths = ["unet/to_q/lora/up", "unet/to_q/kernel", "id_encoder/bias"]
    assert assign_groups(paths, [("unet/.*/lora/up", "lora")]) == {paths[0]: "lora"}
    with pytest.raises(ValueError, match="match no parameter.*'unet/lora'.*id_encoder/bias"):
        assign_groups(paths, [("unet/.*/lora/up", "lora"), ("unet/lora", "lora")])
    with pytest.raises(ValueError, match="disjoint"):
        assign_groups(paths, [("unet/.*", "a"), (".*/kernel", "b")])
