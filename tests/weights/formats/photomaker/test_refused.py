"""PhotoMaker's files that do not fit a model, and models that no file can hold."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax.models.lora import add_adapter
from persongen_jax.weights.errors import (
    BadConfig,
    KeyMismatch,
    MissingFile,
    UnsupportedAdapter,
    WeightsError,
)
from persongen_jax.weights.files.safetensors_file import write_safetensors
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.formats.photomaker import (
    infer_vision_config,
    load_photomaker_into,
    read_photomaker,
    save_photomaker,
)
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from tests.weights.formats.photomaker.models import RANK, attach


def rewrite(path, change):
    """A copy of the file whose flat tensors ``change`` has altered, in place."""
    with read_photomaker(path) as opened:
        arrays = {key: opened.tensors.read(key) for key in opened.tensors.keys()}
    change(arrays)
    return write(path.with_name("changed.safetensors"), arrays)


def write(path, arrays):
    entries = [(key, a.shape, a.dtype, lambda a=a: a) for key, a in arrays.items()]
    write_safetensors(path, entries)
    return path


def test_what_a_method_has_beyond_it_is_read_around_and_not_written(small_base, file, tmp_path):
    """Another head and a LoRA on a branch, as in other methods."""
    model = attach(small_base, method="photomaker_bg")
    model.id_encoder.visual_projection_3 = nnx.clone(model.id_encoder.visual_projection)
    load_photomaker_into(model, file)
    with pytest.raises(WeightsError, match=r"id_encoder\.visual_projection_3"):
        save_photomaker(model, tmp_path / "mine.bin")
    del model.id_encoder.visual_projection_3
    branch = model.unet.mid_block.attentions[0].transformer_blocks[0].attn2.branches["background"]
    add_adapter(branch.to_k, jnp.ones((96, RANK)), jnp.ones((RANK, 64)), 1.0)
    load_photomaker_into(model, file)
    with pytest.raises(WeightsError, match=r"branches\.background\.to_k carries a LoRA"):
        save_photomaker(model, tmp_path / "mine.bin")


def test_keys_that_do_not_pair_up_are_all_listed(model, file):
    gone = "lora_weights.unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor."
    gone += "to_out_lora.up.weight"

    def change(arrays):
        del arrays[gone]
        arrays["id_encoder.fuse_module.mlp3.fc1.weight"] = np.zeros((2, 2), np.float32)
        arrays["id_encoder.visual_projection.weight"] = np.zeros((5, 64), np.float32)

    with pytest.raises(KeyMismatch) as caught:
        load_photomaker_into(model, rewrite(file, change))
    assert list(caught.value.missing) == [gone]
    assert list(caught.value.unexpected) == ["id_encoder.fuse_module.mlp3.fc1.weight"]
    assert caught.value.misshapen == {"id_encoder.visual_projection.weight": ((5, 64), (32, 64))}


def test_position_ids_of_old_files_are_left_out(model, file):
    def change(arrays):
        arrays["id_encoder.vision_model.embeddings.position_ids"] = np.arange(17)[None]

    load_photomaker_into(model, rewrite(file, change))


def test_another_rank_names_both_and_the_key(file, small_base):
    with pytest.raises(WeightsError, match=f"rank {RANK}, the model's rank 2.*rank={RANK}"):
        load_photomaker_into(attach(small_base, rank=2), file)

    def change(arrays):
        key = next(key for key in arrays if key.endswith("to_k_lora.down.weight"))
        arrays[key] = arrays[key][:3]

    with pytest.raises(UnsupportedAdapter, match=re.escape("[3, 4]")):
        read_photomaker(rewrite(file, change))


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("image_proj.proj.weight", "IP-Adapter"),
        ("ip_adapter.1.to_k_ip.weight", "IP-Adapter"),
        ("id_adapter_attn_layers.0.id_to_k.weight", "PuLID"),
        ("unet.mid_block.attentions.0.attn1.to_q.lora.down.weight", "plain LoRA"),
        ("lora_unet_mid_block_attentions_0_proj_in.alpha", "plain LoRA"),
        ("vision_model.post_layernorm.weight", "without its LoRA"),
        ("model.diffusion_model.out.0.weight", "whole Stable Diffusion"),
        ("conv_in.weight", r"id_encoder\.\*"),
    ],
)
def test_other_files_are_named(tmp_path, key, named):
    arrays = {key: np.zeros((2, 2), np.float32)}
    path = write(tmp_path / "adapter.safetensors", arrays)
    with pytest.raises(WeightsError, match=rf"(?s)adapter\.safetensors.*{named}"):
        read_photomaker(path)


def test_missing_files_and_odd_endings(model, tmp_path):
    with pytest.raises(MissingFile, match=r"gone\.bin"):
        read_photomaker(tmp_path / "gone.bin")
    with pytest.raises(WeightsError, match=r"\.safetensors or \.bin"):
        save_photomaker(model, tmp_path / "mine.pth")


def test_models_that_the_format_cannot_hold(file, small_base, tmp_path):
    plain = load_sdxl(small_base).model
    with pytest.raises(WeightsError, match="attach a method"):
        load_photomaker_into(plain, file)
    model = attach(small_base)
    block = model.unet.mid_block.attentions[0]
    add_adapter(block.proj_in, jnp.ones((64, 2)), jnp.ones((2, 64)), 1.0)
    with pytest.raises(WeightsError, match=r"unet\.mid_block\.attentions\.0\.proj_in.*Unload"):
        save_photomaker(model, tmp_path / "mine.bin")
    block.proj_in.lora = nnx.data(None)
    to_q = block.transformer_blocks[0].attn1.to_q
    add_adapter(to_q, jnp.ones((64, 2)), jnp.ones((2, 64)), 0.5)
    with pytest.raises(WeightsError, match=r"attn1\.processor\.to_q.*\[0\.5, 1\.0\]"):
        save_photomaker(model, tmp_path / "mine.bin")


def test_shapes_that_are_no_clip_tower():
    arrays = {
        "embeddings.patch_embedding.weight": np.zeros((60, 3, 8, 8)),
        "embeddings.position_embedding.weight": np.zeros((17, 60)),
        "encoder.layers.0.mlp.fc1.weight": np.zeros((60, 60)),
    }
    with pytest.raises(BadConfig, match="17 positions of width 60"):
        infer_vision_config(DictSource(arrays))
