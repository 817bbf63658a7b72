"""What follows the optimizer's update of a word's embeddings; names of layers and ranks."""

import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from persongen_jax.config_ranges import check_ranges
from persongen_jax.methods.personal.base import ClassImages
from persongen_jax.methods.personal.embedding_rules import keep_spread, stop_after
from persongen_jax.methods.personal.lora import TARGETS, rank_rows, target_pattern
from persongen_jax.models.layers import FIRST_ADDED, Embed, Linear
from persongen_jax.models.lora import add_lora
from persongen_jax.systems.sdxl_config import sdxl_defaults
from persongen_jax.training.unused_keys import unused_keys

KW = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}


def test_rows_are_drawn_to_the_vocabularys_spread():
    rows = {"a": jnp.array(np.random.default_rng(0).standard_normal((3, 8)), jnp.float32)}
    step = {"a": jnp.full((3, 8), 0.1)}
    tx = optax.chain(optax.sgd(1.0), keep_spread({"a": 0.5}, 0.1))
    updates, _ = tx.update(step, tx.init(rows), rows)
    found = optax.apply_updates(rows, updates)["a"]
    moved = np.asarray(rows["a"]) - 0.1
    np.testing.assert_allclose(found, moved * (0.5 / moved.std(ddof=1)) ** 0.1, rtol=1e-5)


def test_they_stay_after_the_last_step_also_against_momentum():
    rows, tx = {"a": jnp.ones(2)}, optax.chain(optax.adam(0.1), stop_after(2))
    state, seen = tx.init(rows), [rows["a"]]
    for _ in range(4):
        updates, state = tx.update({"a": jnp.ones(2)}, state, rows)
        rows = optax.apply_updates(rows, updates)
        seen.append(rows["a"])
    moved = [not np.array_equal(a, b) for a, b in zip(seen, seen[1:], strict=False)]
    assert moved == [True, True, False, False]


def test_added_rows_have_ids_of_their_own():
    table = Embed(5, 4, **KW)
    ids = jnp.array([[0, 4, FIRST_ADDED + 1, FIRST_ADDED]])
    plain = table(ids[:, :2])
    table.added = nnx.data(nnx.Param(jnp.arange(8.0).reshape(2, 4)))
    found = table(ids)
    assert np.array_equal(found[:, :2], plain)
    assert np.array_equal(found[0, 2:], np.array([[4, 5, 6, 7], [0, 1, 2, 3]]))


PATHS = {
    "down_blocks/1/attentions/0/transformer_blocks/0/attn1/to_q": "attention",
    "up_blocks/0/attentions/2/transformer_blocks/1/attn2/to_out/0": "attention cross-attention",
    "mid_block/attentions/0/transformer_blocks/0/ff/net/0/proj": "feed-forward",
    "mid_block/attentions/0/proj_in": "projections",
    "conv_in": "conv",
    "down_blocks/0/resnets/1/conv2": "conv",
    "down_blocks/0/downsamplers/0/conv": "conv",
    "up_blocks/1/resnets/0/time_emb_proj": "time",
    "time_embedding/linear_1": "time",
    "norm_out": "",
}


@pytest.mark.parametrize("name", ["attention", "cross-attention", "feed-forward", "conv", "time"])
def test_names_of_layers(name):
    pattern = target_pattern(name, TARGETS, "lora_targets")
    found = {path for path in PATHS if pattern.fullmatch(path)}
    assert found == {path for path, names in PATHS.items() if name in names.split()}
    both = target_pattern(f"{name}+projections", TARGETS, "lora_targets")
    assert {path for path in PATHS if both.fullmatch(path)} == found | {
        path for path, names in PATHS.items() if names == "projections"
    }


def test_a_broken_expression_names_what_can_be_given():
    with pytest.raises(ValueError, match=r"config\.lora_targets='\('.*give attention, cross-"):
        target_pattern("(", TARGETS, "lora_targets")


class Two(nnx.Module):
    def __init__(self):
        self.a, self.b, self.c = (Linear(4, 4, **KW) for _ in range(3))


def test_ranks_by_pattern():
    net = Two()
    rows = rank_rows((("a", 3), ("b", 0), ("c|a", 5, 5.0)), 2.0, "lora_ranks")
    add_lora(net, re.compile("a|b|c"), 2, alpha=4.0, rngs=nnx.Rngs(0), ranks=rows)
    assert net.a.lora.down.shape == (4, 3) and np.allclose(net.a.lora.scale[...], 2.0)
    assert net.b.lora is None
    assert net.c.lora.down.shape == (4, 5) and np.allclose(net.c.lora.scale[...], 1.0)


@pytest.mark.parametrize("row", [("a",), ("(", 2), ("a", -1), ("a", 1.5), ("a", 1, 2, 3), 7])
def test_faulty_ranks_are_refused(row):
    with pytest.raises(ValueError, match=r"config\.lora_ranks"):
        rank_rows((row,), 1.0, "lora_ranks")


def test_a_rank_for_no_layer_is_refused():
    with pytest.raises(ValueError, match="no layer with a LoRA matches 'z'"):
        add_lora(
            Two(), re.compile("a"), 2, alpha=4.0, rngs=nnx.Rngs(0), ranks=[(re.compile("z"), 2, 1)]
        )


def test_a_class_prompt_needs_a_folder():
    with pytest.raises(ValueError, match=r"config\.class_data"):
        ClassImages("", "a photo of a woman", 10, 1.0)


IDLE = {
    "prior_loss_weight": (0.5, {"class_data": "class"}),
    "num_class_images": (7, {"class_prompt": "a woman"}),
    "class_guidance": (1.0, {"class_prompt": "a woman"}),
    "keep_captions": (2, {"shuffle_captions": True}),
    "text_alpha": (4.0, {"text_rank": 2}),
    "text_targets": ("feed-forward", {"text_rank": 2}),
    "loss_mask_outside": (0.5, {"loss_mask": "mask"}),
}


@pytest.mark.parametrize("key", IDLE)
def test_a_setting_without_its_partner_is_said(key):
    value, partner = IDLE[key]
    defaults = sdxl_defaults()
    config = defaults.copy_and_resolve_references()
    config[key] = value
    config.validation_every = 1
    lines = unused_keys(config, defaults, {"lora"})
    assert [line for line in lines if f"config.{key}; that needs" in line]
    config.update(partner)
    assert not [line for line in unused_keys(config, defaults, {"lora"}) if key in line]


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_vectors", 0), ("text_rank", -1), ("embedding_norm", -0.1), ("loss_mask_outside", 1.5)],
)
def test_numbers_that_make_no_sense_are_refused(key, value):
    config = sdxl_defaults()
    check_ranges(config)
    config[key] = value
    with pytest.raises(ValueError, match=rf"config\.{key}={value}: give"):
        check_ranges(config)
