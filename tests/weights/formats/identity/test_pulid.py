"""PuLID's files: both versions' published keys, converted ones, written again; others by name."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from persongen_jax.convert.exporting import unsupported_reason
from persongen_jax.convert.identify import identify
from persongen_jax.convert.importing import import_file
from persongen_jax.models.branches import add_branch
from persongen_jax.models.id_attention import IDCrossAttention
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.sdxl.sizes import CONFIGS
from persongen_jax.models.sdxl.unet import UNet2DConditionModel
from persongen_jax.pipeline.loading import config_of_file
from persongen_jax.weights.errors import KeyMismatch, UnsupportedAdapter, WeightsError
from persongen_jax.weights.formats.identity import pulid, shared
from persongen_jax.weights.formats.identity.pulid import (
    ENCODERS,
    is_pulid,
    load_pulid_into,
    read_pulid,
    save_pulid,
)
from persongen_jax.weights.saver import write_json
from tests.helpers.published_goldens import golden, weights

KW = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
TINY, _ = golden("tiny_sdxl")
TENSORS = {
    "v1": weights("pulid_v1_pipeline", "pulid_v1_bin"),
    "v1.1": weights("pulid_v11_pipeline", "pulid_v1.1_safetensors"),
}
PUBLISHED = {
    "v1": {"id_features": 1280, "in_features": 1024, "features": 2048},
    "v1.1": {
        **{"id_features": 1280, "in_features": 1024, "features": 1024, "out_features": 2048},
        "heads": 16,
    },
}


def make(unet, version, sizes):
    """A model with the method's parts as shapes."""

    def build():
        model = nnx.Module()
        model.unet = UNet2DConditionModel(unet, **KW)
        model.id_adapter = ENCODERS[version](**sizes, **KW)
        add_branch(model.unet, "identity", IDCrossAttention)
        return model

    return nnx.eval_shape(build)


def zeros(model):
    state = nnx.state(model)
    nnx.update(
        model, nnx.map_state(lambda _, x: x.replace(jnp.asarray(np.zeros(x.shape, x.dtype))), state)
    )
    return model


def write(path, version, rename=lambda key: key, **notes):
    notes = {"head_dim": "8", **notes}
    save_file({rename(key): value for key, value in TENSORS[version].items()}, path, notes)
    return path


@pytest.mark.slow  # the UNet of the published size, in the abstract
@pytest.mark.parametrize(
    ("version", "tensors", "millions"), [("v1", 250, 395.674), ("v1.1", 312, 492.186)]
)
def test_the_published_keys_and_counts(version, tensors, millions):
    slots = pulid._slots(make(CONFIGS["unet"], version, PUBLISHED[version]), "identity")
    assert len(slots) == tensors
    assert round(sum(np.prod(s.shape) for s in slots.values()) / 1e6, 3) == millions
    branch = {key for key in slots if key.startswith("id_adapter_attn_layers.")}
    wanted = {
        f"id_adapter_attn_layers.{i}.id_to_{x}.weight" for i in range(1, 140, 2) for x in "kv"
    }
    assert branch == wanted and slots["id_adapter_attn_layers.139.id_to_k.weight"].shape[1] == 2048


@pytest.mark.parametrize("version", ["v1", "v1.1"])
def test_read_and_written_again_bit_equal(version, tmp_path, monkeypatch):
    path = write(tmp_path / "file.safetensors", version)
    with read_pulid(path) as file:
        assert (file.version, file.layers, file.width) == (version, 17, 40)
        model = zeros(make(TINY["unet"], version, file.sizes))
    load_pulid_into(model, path)
    again = [tmp_path / "again.safetensors", tmp_path / "again.bin"]
    save_pulid(model, again[0])
    if version == "v1.1":
        with pytest.raises(WeightsError, match=r"heads are 8 wide and not 64.*\.safetensors"):
            save_pulid(model, again[1])
        monkeypatch.setattr(shared, "HEAD_DIM", 8)
    save_pulid(model, again[1])
    base = tmp_path / "base"
    (base / "unet").mkdir(parents=True)
    write_json(base / "unet" / "config.json", TINY["unet"])
    said = import_file(again[0], tmp_path / "imported.safetensors", base)
    assert said.startswith(f"PuLID {version}, ")
    for each in (*again, tmp_path / "imported.safetensors"):
        with read_pulid(each) as found:
            assert set(found.tensors.keys()) == set(TENSORS[version])
            for key, value in TENSORS[version].items():
                assert np.array_equal(found.tensors.read(key), value)
        assert identify(each).kind == "pulid" and identify(each).facts["version"] == version
    import torch

    flat = torch.load(again[1], weights_only=True)  # as PuLID's own code reads it
    assert "id_adapter_attn_layers.1.id_to_k.weight" in flat


def test_the_conversion_for_comfyui_holds_the_same(tmp_path):
    def rename(key):
        key = key.replace("id_adapter_attn_layers.", "ip_adapter.").replace(
            ".id_to_k.", ".to_k_ip."
        )
        return key.replace(".id_to_v.", ".to_v_ip.").replace("id_adapter.", "image_proj.")

    path = write(tmp_path / "converted.safetensors", "v1", rename)
    with read_pulid(path) as file:
        assert file.version == "v1" and set(file.tensors.keys()) == set(TENSORS["v1"])
        key = "id_adapter_attn_layers.3.id_to_v.weight"
        assert np.array_equal(file.tensors.read(key), TENSORS["v1"][key])
    assert is_pulid(path) and identify(path).kind == "pulid"
    assert config_of_file(path, None, "")["method"] == "pulid"
    with pytest.raises(ValueError, match="is a PuLID file, not one for 'ip_adapter'"):
        config_of_file(path, "ip_adapter", "")


def test_what_does_not_fit_is_named(tmp_path):
    path = write(tmp_path / "file.safetensors", "v1")
    with read_pulid(path) as file:
        model = make(TINY["unet"], "v1", file.sizes)
    other = write(tmp_path / "other.safetensors", "v1.1")
    with pytest.raises(UnsupportedAdapter, match="is PuLID v1.1, and the model's.*pulid_version"):
        load_pulid_into(model, other)
    with pytest.raises(UnsupportedAdapter, match="metadata says head_dim='many'"):
        read_pulid(write(tmp_path / "odd.safetensors", "v1.1", head_dim="many"))
    with pytest.raises(UnsupportedAdapter, match="32 wide, which is no multiple of 64"):
        read_pulid(write(tmp_path / "odd.safetensors", "v1.1", head_dim="64"))
    few = {k: v for k, v in TENSORS["v1"].items() if ".33." not in k}
    save_file(few, path)
    with pytest.raises(UnsupportedAdapter, match=r"has 16 cross-attention .* 17 of width 40"):
        load_pulid_into(model, path)
    bare = {k: v for k, v in TENSORS["v1"].items() if "mapping_3.0" not in k}
    save_file({**bare, "id_adapter.more": np.zeros(2)}, path)
    with pytest.raises(KeyMismatch, match=r"(?s)mapping_3\.0\.bias.*id_adapter\.more"):
        load_pulid_into(model, path)
    layer = {"ip_adapter.1.to_k_ip.weight": np.zeros((2, 2))}
    for tensors, kind in (
        ({"pulid_ca.0.norm1.weight": np.zeros(2)}, "PuLID for FLUX"),
        ({"image_proj.latents": np.zeros((1, 4, 8)), **layer}, "an IP-Adapter, plus"),
    ):
        save_file(tensors, path)
        with pytest.raises(UnsupportedAdapter, match=f"is {kind}.*; take pulid_v1.bin"):
            read_pulid(path)


def test_a_run_of_it_is_no_ip_adapter():
    """Or publishing would take that format, which holds more of other methods, and fail."""
    model = make(TINY["unet"], "v1", {"id_features": 8, "in_features": 8, "features": 8})
    model.text_encoder = model.text_encoder_2 = nnx.Module()
    config = ConfigDict({"method": "pulid"})
    run: Any = SimpleNamespace(system=SimpleNamespace(model=model), config=config)
    assert not unsupported_reason(run, "pulid")
    assert "PuLID's attention" in unsupported_reason(run, "ip-adapter")
