"""diffusers' directory, opened and written by us, opened by diffusers: bit-equal tensors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from flax import nnx
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from persongen_jax.models.sdxl.parts import COMPONENTS
from persongen_jax.pipeline import Pipeline
from persongen_jax.weights.errors import BadConfig, KeyMismatch, MissingFile, WeightsError
from persongen_jax.weights.formats.sdxl.loading import load_sdxl, save_sdxl
from persongen_jax.weights.random_base import SCHEDULER
from persongen_jax.weights.tiny_tokenizer import SDXL_PAD_TOKENS, write_tiny_tokenizer
from tests.helpers.configs import TINY_UNETS


@pytest.fixture(scope="module")
def diffusers_pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, pad in zip(("tokenizer", "tokenizer_2"), SDXL_PAD_TOKENS, strict=True):
        vocab_size = write_tiny_tokenizer(folder / name, pad)
    torch.manual_seed(0)
    text = {
        "vocab_size": vocab_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
    }
    return StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(**TINY_UNETS["sdxl"]),
        vae=AutoencoderKL(
            block_out_channels=[16, 32],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            norm_num_groups=8,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(hidden_size=32, intermediate_size=64, projection_dim=32, **text)
        ),
        text_encoder_2=CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=32, intermediate_size=64, projection_dim=32, hidden_act="gelu", **text
            )
        ),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        scheduler=EulerDiscreteScheduler.from_config(SCHEDULER),
    )


def tensors(pipe):
    return {
        f"{part}.{key}": value
        for part in COMPONENTS
        for key, value in getattr(pipe, part).state_dict().items()
    }


def assert_bit_equal(found, wanted):
    assert found.keys() == wanted.keys()
    different = [key for key in wanted if not torch.equal(found[key], wanted[key])]
    assert not different


FORMS = {
    "safetensors": {},
    "sharded": {"max_shard_size": "200KB"},
    "fp16": {"variant": "fp16"},
    "pickle": {"safe_serialization": False},
}


@pytest.mark.parametrize("form", FORMS)
def test_round_trip(form, diffusers_pipe, tmp_path):
    dtype, torch_dtype = jnp.float32, torch.float32
    pipe = diffusers_pipe
    if form == "fp16":
        dtype, torch_dtype = jnp.float16, torch.float16
    pipe.to(torch_dtype)
    pipe.save_pretrained(tmp_path / "theirs", **FORMS[form])
    options = {"variant": "fp16"} if form == "fp16" else {}
    base = load_sdxl(tmp_path / "theirs", dtype=dtype, vae_dtype=dtype, **options)
    if form == "fp16":
        # The VAE asks for float32 (force_upcast); its float16 values pass through unharmed.
        assert base.model.vae.dtype == jnp.float32
    save_sdxl(base, tmp_path / "ours")
    again = StableDiffusionXLPipeline.from_pretrained(tmp_path / "ours", torch_dtype=torch_dtype)
    assert_bit_equal(tensors(again), tensors(pipe))
    pipe.to(torch.float32)


def test_bfloat16_weights(diffusers_pipe, tmp_path):
    diffusers_pipe.save_pretrained(tmp_path)
    base = load_sdxl(tmp_path, dtype=jnp.bfloat16)
    weight = diffusers_pipe.unet.conv_in.weight.detach().to(torch.bfloat16).float().numpy()
    found = base.model.unet.conv_in.kernel.get_value()
    assert found.dtype == jnp.bfloat16
    assert np.array_equal(np.asarray(found, np.float32), weight.transpose(2, 3, 1, 0))
    assert base.model.vae.decoder.conv_in.kernel.get_value().dtype == jnp.float32


def test_missing_extra_and_misshapen_are_listed_together(diffusers_pipe, tmp_path):
    from safetensors.torch import load_file, save_file

    diffusers_pipe.save_pretrained(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state.pop("conv_in.weight")
    state["conv_inn.weight"] = torch.zeros(3)
    state["conv_out.bias"] = torch.zeros(5)
    save_file(state, file)
    with pytest.raises(KeyMismatch) as caught:
        load_sdxl(tmp_path)
    message = str(caught.value)
    for part in ("unet", "conv_in.weight", "conv_inn.weight", "conv_out.bias", "(5,)", "(4,)"):
        assert part in message


@pytest.mark.parametrize("gone", ["", "unet", "vae/config.json", "tokenizer_2", "scheduler"])
def test_a_missing_part_is_named(gone, diffusers_pipe, tmp_path):
    import shutil

    diffusers_pipe.save_pretrained(tmp_path / "base")
    target = tmp_path / "base" / gone
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises((WeightsError, FileNotFoundError), match=gone.split("/")[0] or "base"):
        load_sdxl(tmp_path / "base")


@pytest.mark.parametrize("damaged", ["scheduler/scheduler_config.json", "model_index.json"])
def test_a_damaged_config_is_named(damaged, diffusers_pipe, tmp_path):
    diffusers_pipe.save_pretrained(tmp_path)
    (tmp_path / damaged).write_text("{")
    with pytest.raises(BadConfig, match=f"{damaged} line 1: not JSON"):
        load_sdxl(tmp_path)


def test_a_single_file_needs_configs(tmp_path):
    (tmp_path / "sdxl.safetensors").write_bytes(b"")
    with pytest.raises(MissingFile, match="config=DIR"):
        load_sdxl(tmp_path / "sdxl.safetensors")


def test_saving_with_a_lora_on_is_refused(tiny_base, tmp_path):
    pipe = Pipeline.from_pretrained(tiny_base)
    pipe.adapters["x"] = ({}, 1.0)
    with pytest.raises(ValueError, match="fuse_lora"):
        pipe.save_pretrained(tmp_path)


def test_arrays_go_to_the_shardings_given(tiny_base):
    from jax.sharding import NamedSharding, PartitionSpec

    from persongen_jax.parallel.sharding import make_mesh

    sharding = NamedSharding(make_mesh(), PartitionSpec())
    base = load_sdxl(tiny_base, shardings=sharding)
    leaves = jax.tree.leaves(nnx.state(base.model, nnx.Param))
    assert all(leaf.sharding == sharding for leaf in leaves)
