"""Spellings of CLIP and of the VAE, compared with what the public classes save."""

import numpy as np
import pytest

from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.files.directory import open_component
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.keys import (
    normalise_attention,
    normalise_clip_text,
    normalise_clip_vision,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "projection_dim": 12,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "projection_dim": 12,
}
TEXT_NAMES = {
    "embeddings.token_embedding.weight",
    "encoder.layers.1.self_attn.q_proj.bias",
    "encoder.layers.0.mlp.fc2.weight",
    "final_layer_norm.weight",
}
VISION_NAMES = {
    "embeddings.class_embedding",
    "embeddings.patch_embedding.weight",
    "encoder.layers.1.layer_norm2.bias",
    "pre_layrnorm.weight",
    "post_layernorm.bias",
}


def make(name):
    torch.manual_seed(0)
    text, vision = transformers.CLIPTextConfig(**TEXT), transformers.CLIPVisionConfig(**VISION)
    both = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
    config = both if name == "CLIPModel" else text if "Text" in name else vision
    model = getattr(transformers, name)(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # new norms are all equal and would hide a swap
    return model


@pytest.mark.parametrize(
    ("name", "normalise", "some_names", "projection"),
    [
        ("CLIPTextModel", normalise_clip_text, TEXT_NAMES, None),
        ("CLIPTextModelWithProjection", normalise_clip_text, TEXT_NAMES, "text_projection"),
        ("CLIPModel", normalise_clip_text, TEXT_NAMES, "text_projection"),
        ("CLIPVisionModel", normalise_clip_vision, VISION_NAMES, None),
        ("CLIPVisionModelWithProjection", normalise_clip_vision, VISION_NAMES, "visual_projection"),
        ("CLIPModel", normalise_clip_vision, VISION_NAMES, "visual_projection"),
    ],
)
def test_saved_by_transformers(tmp_path, name, normalise, some_names, projection):
    model = make(name)
    model.save_pretrained(tmp_path)
    half = "text_model" if normalise is normalise_clip_text else "vision_model"
    inner = getattr(model, half, model).state_dict()
    wanted = {key: value for key, value in inner.items() if not key.endswith("position_ids")}
    if projection:
        wanted[f"{projection}.weight"] = getattr(model, projection).weight.detach()
    with open_component(tmp_path) as file, normalise(file) as source:
        assert set(source.keys()) == set(wanted) and some_names <= set(wanted)
        for key, value in wanted.items():
            assert source.info(key)[1] == tuple(value.shape)
            np.testing.assert_array_equal(source.read(key), value.numpy())
        # Nothing in the file is dropped silently.
        assert len(source.keys()) + len(source.ignored) == len(file.keys())
        assert bool(source.ignored) == (name == "CLIPModel")


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_both_spellings_and_the_position_ids(prefix):
    source = normalise_clip_text(
        DictSource(
            {
                f"{prefix}embeddings.position_ids": np.arange(8),
                f"{prefix}final_layer_norm.bias": np.ones(3),
                "text_projection.weight": np.ones((2, 3)),
            }
        )
    )
    assert source.keys() == ["final_layer_norm.bias", "text_projection.weight"]
    assert source.ignored == (f"{prefix}embeddings.position_ids",)


def test_a_tensor_under_both_spellings():
    both = {"text_model.final_layer_norm.bias": np.ones(1), "final_layer_norm.bias": np.ones(1)}
    with pytest.raises(WeightsError, match="both mean"):
        normalise_clip_text(DictSource(both))


def test_what_no_rule_knows_passes_through():
    tensors = {
        "vision_model.pre_layrnorm.weight": np.ones(1),
        "visual_projection_2.weight": np.ones(1),
        "fuse_module.mlp1.fc1.weight": np.ones(1),
    }
    keys = normalise_clip_vision(DictSource(tensors)).keys()
    assert keys == [
        "pre_layrnorm.weight",
        "visual_projection_2.weight",
        "fuse_module.mlp1.fc1.weight",
    ]


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("old_names", [True, False])
@pytest.mark.parametrize("extra_dims", [0, 1, 2])
def test_vae_attention_of_every_age(old_names, extra_dims):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    aged = {}
    for key, value in state.items():
        for new, old in OLD.items() if "attentions" in key else ():
            if f".{new}." in key:
                key = key.replace(f".{new}.", f".{old}.") if old_names else key
                if key.endswith("weight"):
                    value = value.reshape(value.shape + (1,) * extra_dims)
        aged[key] = value
    assert (set(aged) != set(state)) == old_names
    source = normalise_attention(DictSource(aged))
    assert set(source.keys()) == set(state)
    for key, value in state.items():
        assert source.info(key) == (value.dtype, value.shape)
        np.testing.assert_array_equal(source.read(key), value)
