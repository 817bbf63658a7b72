"""Our CLIP towers against transformers' on torch: layer by layer, whole, and their full sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from persongen_jax.models.encoders.clip import CLIPTextModel, CLIPVisionModel
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.keys import normalise_clip_text, normalise_clip_vision
from persongen_jax.weights.loader import (
    load_module,
    parameter_leaves,
    to_torch_shape,
    torch_key,
)
from tests.helpers.twins import nhwc, randomise, relative_error, state_dict_source

# Relative error of float32 against float32, and of bfloat16 against float32.
TOLERANCE = 1e-5
BF16_TOLERANCE = 2e-2

TINY_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": 16,
    "eos_token_id": 2,
}
# name: (config, with projection)
TEXT_TOWERS = {
    "clip_l": (TINY_TEXT, False),
    "bigg": ({**TINY_TEXT, "hidden_act": "gelu", "projection_dim": 48}, True),
    "own_eos": (
        {
            **TINY_TEXT,
            "hidden_size": 24,
            "num_attention_heads": 3,
            "projection_dim": 24,
            "eos_token_id": 90,
            "layer_norm_eps": 1e-3,
        },
        True,
    ),
    "own_eos_no_projection": ({**TINY_TEXT, "num_hidden_layers": 1, "eos_token_id": 90}, False),
}
TINY_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 24,
}
VISION_TOWERS = {
    "vit_l": (TINY_VISION, True),
    "no_projection": ({**TINY_VISION, "hidden_act": "gelu", "layer_norm_eps": 1e-3}, False),
    "odd": (
        {
            **TINY_VISION,
            "hidden_size": 40,
            "num_attention_heads": 5,
            "image_size": 31,  # not a multiple of the patch: the rest is cut off
        },
        True,
    ),
}


def torch_tower(kind, config, with_projection):
    name = f"CLIP{kind}Model" + ("WithProjection" if with_projection else "")
    return getattr(transformers, name)(getattr(transformers, f"CLIP{kind}Config")(**config))


def canonical_source(kind, torch_module):
    """The weights under transformers' keys without the tower's prefix, as in our paths."""
    normalise = {"Text": normalise_clip_text, "Vision": normalise_clip_vision}[kind]
    return normalise(state_dict_source(torch_module))


def make_twins(kind, config, with_projection, **dtypes):
    theirs = randomise(torch_tower(kind, config, with_projection))
    model = {"Text": CLIPTextModel, "Vision": CLIPVisionModel}[kind]
    ours = load_module(
        lambda: model(config, with_projection=with_projection, **dtypes, rngs=UnusedRngs()),
        canonical_source(kind, theirs),
    )
    return theirs, ours


def make_ids():
    """Three prompts: eos then zeros, eos repeated to the end, and eos only in the last position."""
    ids = np.random.default_rng(1).integers(3, 80, (3, 12))
    # 98 is the highest id of the vocabulary and 90 the eos of the configs that name it; 90 after
    # 98 and 98 after 90 make the two rules of pooling give different rows.
    ids[0, 5:] = [90, 98, 0, 0, 0, 0, 0]
    ids[1, 4:] = [98] + [90] * 7
    ids[2, 10:] = [98, 90]
    return ids


def run_both(kind, theirs, ours):
    if kind == "Text":
        torch_inputs = torch.tensor(make_ids())
        inputs = jnp.asarray(make_ids())
    else:
        size = ours.config["image_size"]
        torch_inputs = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
        inputs = nhwc(torch_inputs)
    with torch.no_grad():
        expected = theirs(torch_inputs, output_hidden_states=True)
    return jax.jit(lambda x: ours(x))(inputs), expected


CASES = [("Text", name) for name in TEXT_TOWERS] + [("Vision", name) for name in VISION_TOWERS]


def case(kind, name):
    return {"Text": TEXT_TOWERS, "Vision": VISION_TOWERS}[kind][name]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_layer_by_layer_and_whole(kind, name):
    config, with_projection = case(kind, name)
    ours, expected = run_both(kind, *make_twins(kind, config, with_projection))

    assert len(ours.hidden_states) == config["num_hidden_layers"] + 1
    pairs = {
        f"hidden_states[{i}]": pair
        for i, pair in enumerate(zip(ours.hidden_states, expected.hidden_states, strict=True))
    }
    pairs["last_hidden_state"] = ours.last_hidden_state, expected.last_hidden_state
    embeds = "text_embeds" if kind == "Text" else "image_embeds"
    if with_projection:
        pairs[embeds] = getattr(ours, embeds), getattr(expected, embeds)
    else:
        assert getattr(ours, embeds) is None
        pairs["pooler_output"] = ours.pooler_output, expected.pooler_output
    errors = {key: relative_error(a, b.numpy()) for key, (a, b) in pairs.items()}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize(("kind", "name"), [("Text", "bigg"), ("Vision", "vit_l")])
def test_bfloat16(kind, name):
    twins = make_twins(kind, *case(kind, name), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    ours, expected = run_both(kind, *twins)
    assert ours.last_hidden_state.dtype == jnp.bfloat16
    embeds = "text_embeds" if kind == "Text" else "image_embeds"
    for a, b in (
        (ours.hidden_states[-2], expected.hidden_states[-2]),
        (getattr(ours, embeds), getattr(expected, embeds)),
    ):
        assert relative_error(a.astype(jnp.float32), b.numpy()) < BF16_TOLERANCE


@pytest.mark.parametrize("as_dict", [False, True])
def test_towers_of_a_full_clip_model(as_dict):
    """One config.json with both towers nested, as in OpenAI's checkpoints."""
    # The nested projection_dim does not count.
    text, vision = {**TINY_TEXT, "projection_dim": 7}, {**TINY_VISION, "projection_dim": 7}
    config = {"text_config": text, "vision_config": vision, "projection_dim": 20}
    theirs = transformers.CLIPModel(transformers.CLIPConfig(**config)).eval()
    for part in ("text_model", "vision_model", "text_projection", "visual_projection"):
        randomise(getattr(theirs, part))
    if as_dict:
        config = {
            "text_config_dict": text,
            "text_config": {"hidden_size": 1},
            "vision_config_dict": vision,
            "projection_dim": 20,
        }
    config["architectures"] = ["CLIPModel"]

    def tower(kind):
        model = {"Text": CLIPTextModel, "Vision": CLIPVisionModel}[kind]
        return load_module(lambda: model(config, rngs=UnusedRngs()), canonical_source(kind, theirs))

    ids = make_ids()
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        text_embeds = theirs.get_text_features(torch.tensor(ids)).pooler_output
        image_embeds = theirs.get_image_features(pixels).pooler_output
    ours = jax.jit(tower("Text"))(jnp.asarray(ids))
    assert relative_error(ours.text_embeds, text_embeds.numpy()) < TOLERANCE
    ours = jax.jit(tower("Vision"))(nhwc(pixels))
    assert relative_error(ours.image_embeds, image_embeds.numpy()) < TOLERANCE


def test_unused_layers_are_not_computed_under_jit():
    model = nnx.eval_shape(lambda: CLIPTextModel(TINY_TEXT, rngs=UnusedRngs()))
    graphdef, state = nnx.split(model)

    def flops(select):
        ids = jax.ShapeDtypeStruct((1, 12), jnp.int32)
        run = jax.jit(lambda state, ids: select(nnx.merge(graphdef, state)(ids)))
        return run.lower(state, ids).compile().cost_analysis()["flops"]

    one, two = (flops(lambda out, i=i: out.hidden_states[i]) for i in (1, 2))
    whole = flops(lambda out: out.last_hidden_state)
    assert one < 0.6 * two < 0.6 * 0.8 * whole
    # The last layer for the pooled token alone: little more than its keys and values.
    last, pooled = (flops(select) - two for select in (lambda out: out.last_hidden_state, _pooled))
    assert 0 < pooled < 0.5 * last


def _pooled(out):
    return out.pooler_output


FULL_SIZES = {
    "clip_l": (
        "Text",
        False,
        123_060_480,
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
        },
    ),
    "bigg": (
        "Text",
        True,
        694_659_840,
        {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_attention_heads": 20,
            "num_hidden_layers": 32,
            "projection_dim": 1280,
            "hidden_act": "gelu",
        },
    ),
    "vit_l_224": (
        "Vision",
        True,
        303_966_208,
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
        },
    ),
}
FULL_SIZES["vit_l_336"] = (
    "Vision",
    True,
    303_966_208 + (24**2 - 16**2) * 1024,
    {**FULL_SIZES["vit_l_224"][-1], "image_size": 336},
)


@pytest.mark.parametrize("name", FULL_SIZES)
def test_full_size_keys_and_shapes(name):
    kind, with_projection, count, config = FULL_SIZES[name]
    model = {"Text": CLIPTextModel, "Vision": CLIPVisionModel}[kind]
    leaves = parameter_leaves(
        nnx.eval_shape(lambda: model(config, with_projection=with_projection, rngs=UnusedRngs()))
    )
    with torch.device("meta"):
        theirs = torch_tower(kind, config, with_projection).state_dict()
    prefix = f"{kind.lower()}_model."
    theirs = {key.removeprefix(prefix): tuple(value.shape) for key, value in theirs.items()}
    ours = {torch_key(path): to_torch_shape(path, leaf.shape) for path, leaf in leaves.items()}
    assert ours == theirs
    assert sum(leaf.size for leaf in leaves.values()) == count


@pytest.mark.parametrize(
    ("architecture", "projects"),
    [
        ("CLIPTextModel", False),
        ("CLIPTextModelWithProjection", True),
        (None, False),
    ],
)
def test_projection_by_architecture(architecture, projects):
    config = {**TINY_TEXT, "architectures": architecture and [architecture]}
    assert (CLIPTextModel(config, rngs=UnusedRngs()).text_projection is not None) == projects


@pytest.mark.parametrize(
    ("model", "change", "named"),
    [
        (CLIPTextModel, {"num_attention_heads": 5}, "num_attention_heads"),
        (CLIPTextModel, {"eos_token_id": [2, 3]}, "eos_token_id"),
        (CLIPTextModel, {"hidden_act": "tanh"}, "tanh"),
        (CLIPVisionModel, {"image_size": [28, 42]}, "image_size"),
    ],
)
def test_unsupported_config_is_named(model, change, named):
    config = {**(TINY_TEXT if model is CLIPTextModel else TINY_VISION), **change}
    with pytest.raises(ValueError, match=named):
        nnx.eval_shape(lambda: model(config, rngs=UnusedRngs()))


def test_inputs_that_do_not_fit_are_named():
    text = CLIPTextModel(TINY_TEXT, rngs=UnusedRngs())
    with pytest.raises(ValueError, match="max_position_embeddings"):
        text(jnp.zeros((1, 17), jnp.int32))
    vision = CLIPVisionModel(TINY_VISION, rngs=UnusedRngs())
    with pytest.raises(ValueError, match="image_size"):
        vision(jnp.zeros((1, 35, 28, 3)))
