"""Original SDXL checkpoints: tiny twins saved under sgm's names and split again."""

import re

import numpy as np
import pytest

from persongen_jax.weights.errors import BadConfig, KeyMismatch
from persongen_jax.weights.original_sdxl import split_checkpoint
from persongen_jax.weights.safetensors_file import TensorFile, write_safetensors
from persongen_jax.weights.source import DictSource

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

UNET = {
    "sample_size": 8,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "attention_head_dim": [1, 2, 2],
    "block_out_channels": (4, 8, 8),
    "cross_attention_dim": 12,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "norm_num_groups": 2,
    "projection_class_embeddings_input_dim": 30,
    "transformer_layers_per_block": [1, 1, 2],
    "use_linear_projection": True,
}
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
            torch.nn.init.normal_(parameter)  # fresh norms are all alike and would hide a swap
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


# The way back, written for itself: patterns on diffusers' names and arithmetic on their numbers.


def unet_to_sgm(key, config):
    layers = config["layers_per_block"]

    def place(match):
        kind, i, part, j = match[1], int(match[2]), match[3], int(match[4])
        if kind == "down":
            n = 1 + i * (layers + 1) + (layers if part == "downsamplers" else j)
            slot = {"resnets": "0", "attentions": "1", "downsamplers": "0.op"}[part]
            return f"input_blocks.{n}.{slot}"
        last = part == "upsamplers"
        n = i * (layers + 1) + (layers if last else j)
        sampler = "2" if "Cross" in config["up_block_types"][i] else "1"
        slot = {"resnets": "0", "attentions": "1", "upsamplers": sampler + ".conv"}[part]
        return f"output_blocks.{n}.{slot}"

    key = re.sub(r"samplers\.0\.conv\.", "samplers.0.", key)
    key = re.sub(r"^(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)", place, key)
    key = re.sub(r"^mid_block\.resnets\.1", "middle_block.2", key)
    key = re.sub(r"^mid_block\.resnets\.0", "middle_block.0", key)
    key = re.sub(r"^mid_block\.attentions\.0", "middle_block.1", key)
    if re.match(r"(in|out)put_blocks\.\d+\.0\.|middle_block\.[02]\.", key):
        key = key.replace("norm1", "in_layers.0").replace("conv1", "in_layers.2")
        key = key.replace("norm2", "out_layers.0").replace("conv2", "out_layers.3")
        key = key.replace("time_emb_proj", "emb_layers.1")
        key = key.replace("conv_shortcut", "skip_connection")
    for ours, theirs in {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }.items():
        key = re.sub(rf"^{re.escape(ours)}\.", theirs + ".", key)
    return "model.diffusion_model." + key


def vae_to_sgm(key, value):
    if ".attentions.0.to_" in key and value.ndim == 2:
        value = value[:, :, None, None]
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(
        r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", key
    )
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
    key = key.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
    key = re.sub(r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1", key)
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    return "first_stage_model." + key, value


def open_clip(state):
    out = {}
    for key, value in state.items():
        if "k_proj" in key or "v_proj" in key:
            continue
        if "q_proj" in key:
            value = np.concatenate([state[key.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            key = key.replace("self_attn.q_proj.", "attn.in_proj_")
        if key == "text_projection.weight":
            key, value = "text_projection", np.ascontiguousarray(value.T)
        key = key.replace("encoder.layers", "transformer.resblocks")
        key = key.replace("self_attn.out_proj", "attn.out_proj")
        key = key.replace("layer_norm1", "ln_1").replace("layer_norm2", "ln_2")
        key = key.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
        key = key.replace("final_layer_norm", "ln_final")
        key = key.replace("embeddings.token_embedding", "token_embedding")
        key = key.replace("embeddings.position_embedding.weight", "positional_embedding")
        out["conditioner.embedders.1.model." + key] = value
    return out


def checkpoint(state, config=UNET):
    out = {unet_to_sgm(key, config): value for key, value in state["unet"].items()}
    out |= dict(vae_to_sgm(key, value) for key, value in state["vae"].items())
    text = "conditioner.embedders.0.transformer.text_model."
    out |= {text + key: value for key, value in state["text_encoder"].items()}
    out |= open_clip(state["text_encoder_2"])
    out[text + "embeddings.position_ids"] = np.arange(6)[None]
    out["conditioner.embedders.1.model.logit_scale"] = np.array(4.6, np.float32)
    out["denoiser.sigmas"] = np.zeros(1000, np.float32)
    out["model_ema.decay"] = np.array(0.99, np.float32)
    return out


@pytest.fixture(scope="module")
def models():
    return twins()


@pytest.fixture(scope="module")
def state(models):
    return states(models)


@pytest.fixture(scope="module")
def tensors(state):
    return checkpoint(state)


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
    assert set(parts["unet"].ignored) == {"denoiser.sigmas", "model_ema.decay"}
    assert len(parts["text_encoder"].ignored) == len(parts["text_encoder_2"].ignored) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_per_block": 1},
        {  # as the refiner: the outer blocks on both sides have no attention
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
        "first_stage_model.loss.discriminator.weight",
        "conditioner.embedders.0.transformer.text_projection.weight",
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.bias_k",
        "conditioner.embedders.1.model.visual.proj",
        "lora_unet_x.alpha",
        "v_pred",
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
    with pytest.raises(KeyMismatch) as caught:
        split_checkpoint(DictSource(rest), UNET, VAE)
    assert list(caught.value.missing) == ["first_stage_model.*"]


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
