"""Original SDXL checkpoints: tiny twins saved under sgm's names and split again."""

import numpy as np
import pytest

from persongen_jax.weights.errors import BadConfig, KeyMismatch
from persongen_jax.weights.files.safetensors_file import TensorFile, write_safetensors
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.formats.sdxl.original import split_checkpoint
from tests.weights.formats.sgm import UNET, checkpoint

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

VAE = {
    "block_out_channels": (4, 8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "norm_num_groups": 2,
}
CLIP = {
    "vocab_size": 20,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def twins(unet_config=UNET):
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(**CLIP, hidden_size=8)
    text_2 = transformers.CLIPTextConfig(**CLIP, hidden_size=12, projection_dim=10)
    models = {
        "unet": diffusers.UNet2DConditionModel(**unet_config),
        "vae": diffusers.AutoencoderKL(**VAE),
        "text_encoder": transformers.CLIPTextModel(text),
        "text_encoder_2": transformers.CLIPTextModelWithProjection(text_2),
    }
    for model in models.values():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)  # new norms are all equal and would hide a swap
    return models


def states(models):
    """Component -> canonical name -> array."""
    return {
        name: {
            key.removeprefix("text_model."): value.numpy()
            for key, value in model.state_dict().items()
            if not key.endswith("position_ids")
        }
        for name, model in models.items()
    }


@pytest.fixture(scope="module")
def models():
    return twins()


@pytest.fixture(scope="module")
def state(models):
    return states(models)


@pytest.fixture(scope="module")
def tensors(state):
    return checkpoint(state, UNET)


def assert_same(source, wanted):
    assert set(source.keys()) == set(wanted)
    for key, value in wanted.items():
        assert source.info(key) == (value.dtype, value.shape), key
        np.testing.assert_array_equal(source.read(key), value, err_msg=key)


def test_splits_into_what_diffusers_has(tmp_path, state, tensors):
    path = tmp_path / "sdxl.safetensors"
    write_safetensors(path, [(k, v.shape, v.dtype, lambda v=v: v) for k, v in tensors.items()])
    with TensorFile(path) as file:
        parts = split_checkpoint(file, UNET, VAE)
        assert set(parts) == set(state)
        for name, part in parts.items():
            assert_same(part, state[name])
            assert "sdxl.safetensors" in part.describe() and name in part.describe()
            part.close()  # the file stays open for the other parts
    assert {"denoiser.sigmas", "model_ema.decay"} < set(parts["unet"].ignored)
    assert len(parts["unet"].ignored) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_per_block": 1},
        {  # like the refiner: the outer blocks on both sides have no attention
            "attention_head_dim": [1, 2, 2, 2],
            "block_out_channels": (4, 8, 8, 8),
            "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
            "transformer_layers_per_block": 1,
        },
    ],
)
def test_other_unets(changes):
    config = {**UNET, **changes}
    state = states(twins(config))
    parts = split_checkpoint(DictSource(checkpoint(state, config)), config, VAE)
    assert_same(parts["unet"], state["unet"])


def test_agrees_with_diffusers_converters(models, tensors):
    from diffusers.loaders import single_file_utils as public

    theirs = {key: torch.tensor(value) for key, value in tensors.items()}
    converted = {
        "unet": public.convert_ldm_unet_checkpoint(dict(theirs), UNET),
        "vae": public.convert_ldm_vae_checkpoint(dict(theirs), VAE),
        "text_encoder": public.convert_ldm_clip_checkpoint(dict(theirs)),
        "text_encoder_2": public.convert_open_clip_checkpoint(
            models["text_encoder_2"], dict(theirs), prefix="conditioner.embedders.1.model."
        ),
    }
    parts = split_checkpoint(DictSource(tensors), UNET, VAE)
    for name, part in parts.items():
        wanted = {
            key.removeprefix("text_model."): value.numpy()
            for key, value in converted[name].items()
            if not key.endswith("position_ids")
        }
        assert_same(part, wanted)


@pytest.mark.parametrize(
    "key",
    [
        "cond_stage_model.x",
        "model.diffusion_model.input_blocks.99.0.in_layers.0.weight",
        "model.diffusion_model.input_blocks.1.1.proj_in.weight",  # no attention in that block
        "model.diffusion_model.output_blocks.8.1.conv.weight",  # no sampler in the last block
        "first_stage_model.decoder.up.4.block.0.norm1.weight",
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.bias_k",
        "conditioner.embedders.1.model.visual.proj",
        "lora_unet_x.alpha",
        "model_spec",
    ],
)
def test_a_key_no_rule_knows(tensors, key):
    source = DictSource({**tensors, key: np.zeros((2, 3))}, "x.safetensors")
    with pytest.raises(KeyMismatch, match="x.safetensors") as caught:
        split_checkpoint(source, UNET, VAE)
    assert caught.value.unexpected == {key: (2, 3)} and not caught.value.missing


def test_a_fused_tensor_that_is_not_three_parts(tensors):
    key = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_bias"
    source = DictSource({**tensors, key: np.zeros(37)})
    with pytest.raises(KeyMismatch) as caught:
        split_checkpoint(source, UNET, VAE)
    assert caught.value.unexpected == {key: (37,)}


def test_a_whole_component_missing(tensors):
    rest = {k: v for k, v in tensors.items() if not k.startswith("first_stage_model.")}
    assert set(split_checkpoint(DictSource(rest), UNET, VAE)) == {
        *("unet", "text_encoder", "text_encoder_2")
    }


@pytest.mark.parametrize(
    ("unet", "vae"),
    [
        ({"down_block_types": ["AttnDownBlock2D"] * 3}, {}),
        ({"up_block_types": ["UpBlock2D"]}, {}),
        ({"layers_per_block": [2, 2]}, {}),
        ({}, {"down_block_types": ["X"]}),
        ({}, {"up_block_types": ["UpDecoderBlock2D"]}),
    ],
)
def test_configs_that_are_not_sdxl(tensors, unet, vae):
    with pytest.raises(BadConfig):
        split_checkpoint(DictSource(tensors), {**UNET, **unet}, {**VAE, **vae})
