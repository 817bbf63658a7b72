"""InstantID's adapter file: its published keys, read and written again, other files by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from persongen_jax.convert.identify import identify
from persongen_jax.models.branches import add_branch
from persongen_jax.models.encoders.resampler import Resampler
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.sdxl.sizes import CONFIGS
from persongen_jax.models.sdxl.unet import UNet2DConditionModel
from persongen_jax.pipeline.loading import config_of_file
from persongen_jax.weights.errors import KeyMismatch, UnsupportedAdapter, WeightsError
from persongen_jax.weights.formats.identity import instantid, shared
from persongen_jax.weights.formats.identity.instantid import (
    is_instantid,
    load_instantid_into,
    published_sizes,
    read_instantid,
    save_instantid,
)
from persongen_jax.weights.formats.ip_adapter import read_ip_adapter
from tests.helpers.published_goldens import golden, weights

KW = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
TINY, _ = golden("tiny_sdxl")
NAME = "instantid_pipeline"


def make(unet, sizes):
    """A model with the method's parts as shapes."""

    def build():
        model = nnx.Module()
        model.unet = UNet2DConditionModel(unet, **KW)
        model.image_proj = Resampler(**sizes, **KW)
        add_branch(model.unet, "identity")
        return model

    return nnx.eval_shape(build)


@pytest.fixture(scope="module")
def model():
    """The tiny one, as zeros."""
    sizes = {"in_features": 64, "features": 32, "out_features": 40, "heads": 4, "head_dim": 8}
    made = make(TINY["unet"], {**sizes, "num_layers": 2, "num_tokens": 16})
    state = nnx.state(made)
    nnx.update(made, jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype)), state))
    return made


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("instantid") / "ip-adapter.safetensors")


def write(path, change=lambda tensors: None, **notes):
    tensors = dict(weights(NAME, "ip_adapter_bin"))
    change(tensors)
    save_file(tensors, path, {"head_dim": "8", **notes})
    return path


@pytest.mark.slow  # the UNet of the published size, in the abstract
def test_the_published_keys_shapes_and_counts():
    slots = instantid._slots(make(CONFIGS["unet"], published_sizes(512, 2048)), "identity")
    found = {key: tuple(slot.shape) for key, slot in slots.items()}
    d, text = 1280, 2048
    wanted = {"latents": (1, 16, d), "proj_in.weight": (d, 512), "proj_in.bias": (d,)}
    wanted |= {"proj_out.weight": (text, d), "proj_out.bias": (text,)}
    wanted |= {f"norm_out.{name}": (text,) for name in ("weight", "bias")}
    for i in range(4):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            wanted |= {f"layers.{i}.{norm}.{name}": (d,) for name in ("weight", "bias")}
        wanted |= {f"layers.{i}.0.{name}.weight": (d, d) for name in ("to_q", "to_out")}
        wanted[f"layers.{i}.0.to_kv.weight"] = (2 * d, d)
        wanted[f"layers.{i}.1.1.weight"] = (4 * d, d)
        wanted[f"layers.{i}.1.3.weight"] = (d, 4 * d)
    projection = {k: s for k, s in found.items() if k.startswith("image_proj.")}
    assert projection == {f"image_proj.{k}": s for k, s in wanted.items()} and len(wanted) == 51
    branch = {k: s for k, s in found.items() if k not in projection}
    assert branch.keys() == {
        f"ip_adapter.{i}.to_{x}_ip.weight" for i in range(1, 140, 2) for x in "kv"
    }
    assert {s[1] for s in branch.values()} == {text}
    sizes = [sum(map(np.prod, part.values())) / 1e6 for part in (projection, branch, found)]
    assert [round(n, 3) for n in sizes] == [81.979, 340.787, 422.766] and len(found) == 191


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_read_and_written_again_bit_equal(suffix, file, model, tmp_path, monkeypatch):
    load_instantid_into(model, file)
    out = tmp_path / f"again{suffix}"
    if suffix == ".bin":
        with pytest.raises(WeightsError, match=r"heads are 8 wide and not 64.*\.safetensors"):
            save_instantid(model, out)
        monkeypatch.setattr(shared, "HEAD_DIM", 8)
    save_instantid(model, out)
    with read_instantid(out) as again:
        assert again.sizes == read_instantid(file).sizes and (again.layers, again.width) == (17, 40)
        wanted = weights(NAME, "ip_adapter_bin")
        assert set(again.tensors.keys()) == set(wanted)
        assert all(np.array_equal(again.tensors.read(key), wanted[key]) for key in wanted)
    # A file of ours says what no key shows where the embeddings are not 512 wide.
    assert is_instantid(out) == (suffix == ".safetensors") and not is_instantid(file)
    kind = "instantid" if suffix == ".safetensors" else "ip-adapter-plus"
    assert identify(out).kind == kind


def test_a_file_says_which_method_reads_it(file, tmp_path):
    wide = write(tmp_path / "wide.safetensors", adapter="instantid")
    assert config_of_file(wide, None, "")["method"] == "instantid"
    config = config_of_file(file, "instantid", "")
    assert (config["controlnet"], config["face_point_radius"]) == ("", 10)
    with pytest.raises(ValueError, match="is InstantID's adapter, not one for 'ip_adapter'"):
        config_of_file(wide, "ip_adapter", "")
    with pytest.raises(UnsupportedAdapter, match="is InstantID's adapter.*method instantid"):
        read_ip_adapter(wide)


def features(width, tensors):
    tensors["image_proj.proj_in.weight"] = np.zeros((32, width), np.float32)


def only(tensors, *keys):
    tensors.clear()
    tensors.update({key: np.zeros((8, 8), np.float32) for key in keys})


def renamed(tensors):
    tensors["image_proj.layers.0.0.to_q.bias2"] = tensors.pop("image_proj.proj_out.weight")
    tensors["more"] = np.zeros(1, np.float32)


OTHERS = {
    "plus": (functools.partial(features, 1280), "is an IP-Adapter, plus.*ViT-H's patches .1280"),
    "base": (
        lambda t: only(t, "image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"),
        "is an IP-Adapter, base; InstantID's adapter is needed",
    ),
    "faceid": (
        lambda t: only(
            t,
            *(f"image_proj.{n}.weight" for n in ("proj.0", "proj.2", "norm")),
            "ip_adapter.1.to_k_ip.weight",
        ),
        "is an IP-Adapter, FaceID;",
    ),
    "pulid": (lambda t: only(t, "id_adapter.mapping_0.0.weight"), "is PuLID;"),
    "photomaker": (
        lambda t: only(t, "id_encoder.visual_projection.weight", "lora_weights.unet.x"),
        "is PhotoMaker v1",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_adapters_are_named(name, tmp_path):
    change, said = OTHERS[name]
    path = write(tmp_path / "other.safetensors", change)
    with pytest.raises(UnsupportedAdapter, match=said):
        read_instantid(path)


def test_a_damaged_file_lists_its_keys(model, tmp_path):
    with pytest.raises(KeyMismatch) as caught:
        read_instantid(write(tmp_path / "a.safetensors", renamed))
    assert "image_proj.proj_out.weight" in str(caught.value) and "more" in str(caught.value)
    path = write(tmp_path / "b.safetensors", lambda t: t.pop("ip_adapter.3.to_v_ip.weight"))
    with pytest.raises(KeyMismatch, match=r"ip_adapter\.3\.to_v_ip\.weight"):
        load_instantid_into(model, path)
    path = write(tmp_path / "c.safetensors", head_dim="5")
    with pytest.raises(UnsupportedAdapter, match="32 wide, which is no multiple of 5"):
        read_instantid(path)
    path = write(
        tmp_path / "d.safetensors",
        lambda t: [t.pop(f"ip_adapter.33.to_{x}_ip.weight") for x in "kv"],
    )
    with pytest.raises(UnsupportedAdapter, match="has 16 cross-attention layers.*UNet 17 of"):
        load_instantid_into(model, path)
    bare = nnx.Module()
    bare.unet = model.unet
    with pytest.raises(WeightsError, match="attach the method instantid before"):
        save_instantid(bare, tmp_path / "never.safetensors")
    assert load_file(path)  # untouched
