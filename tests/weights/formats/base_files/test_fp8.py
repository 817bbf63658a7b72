"""Bases in fp8, plain and scaled, and other quantisations, which are refused."""

import json

import ml_dtypes
import numpy as np
import pytest

from persongen_jax.convert.identify import identify
from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.files.directory import read_config
from persongen_jax.weights.formats.sdxl.opening import open_base
from tests.weights.formats.base_files.bases import (
    UNET,
    save,
)
from tests.weights.formats.sgm import unet_to_sgm


def quantised(tensors, newer, rows=False):
    """The attention's linear layers in fp8: (tensors, metadata, the values they represent)."""
    out, layers, wanted = dict(tensors), {}, {}
    for key in [k for k in tensors if k.endswith("to_q.weight") and k.startswith(UNET)]:
        value, layer = tensors[key], key.removesuffix(".weight")
        axis = tuple(range(1, value.ndim)) if rows else None
        scale = (np.abs(value).max(axis, keepdims=rows) / 448).astype(np.float32)
        out[key] = (value / scale).astype(ml_dtypes.float8_e4m3fn)
        out[layer + (".weight_scale" if newer else ".scale_weight")] = scale
        out[layer + (".input_scale" if newer else ".scale_input")] = np.ones((), np.float32)
        wanted[key] = out[key].astype(np.float32) * scale
        layers[layer] = {"format": "float8_e4m3fn"}
    if not newer:
        out[UNET + "scaled_fp8"] = np.zeros(2, ml_dtypes.float8_e4m3fn)
        return out, {}, wanted
    return out, {"_quantization_metadata": json.dumps({"layers": layers})}, wanted


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_scaled_fp8_is_multiplied_out(newer, rows, whole, state, bare, tiny_base, tmp_path):
    tensors, notes, wanted = quantised(whole, newer, rows)
    path = save(tmp_path / "fp8.safetensors", tensors, notes)
    unet = read_config(tiny_base / "unet")
    with open_base(path, config=bare) as files:
        found = files.sources["unet"]
        assert set(found.keys()) == set(state["unet"])
        ours = {unet_to_sgm(key, unet): key for key in state["unet"]}
        for key, value in wanted.items():
            assert np.array_equal(found.read(ours[key]), value)
            assert not np.array_equal(value, whole[key])
    (note,) = files.notes
    assert "float8_e4m3fn, scaled" in note and "coarser" in note
    assert "scaled (" in identify(path).facts["stored as"]


def test_layers_that_name_their_format(whole, bare, tmp_path):
    tensors, _, _ = quantised(whole, True)
    layer = next(k for k in tensors if k.endswith(".weight_scale")).removesuffix(".weight_scale")

    def told(name):
        text = json.dumps({"format": name}).encode()
        marked = tensors | {f"{layer}.comfy_quant": np.frombuffer(text, np.uint8)}
        return save(tmp_path / f"{name}.safetensors", marked)

    open_base(told("float8_e4m3fn"), config=bare).close()
    with pytest.raises(WeightsError, match="'int8_tensorwise', which is not read here"):
        open_base(told("int8_tensorwise"), config=bare)
    assert (
        "int8_tensorwise"
        in identify(tmp_path / "int8_tensorwise.safetensors").facts["not read here"]
    )


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({UNET + "gone.scale_weight": np.ones((), "f4")}, "has no weight"),
        ({UNET + "out.2.weight_scale": np.ones((2, 2), "f4")}, "per block"),
        ({UNET + "out.2.weight_scale_2": np.ones((), "f4")}, "NVFP4"),
        ({UNET + "out.2.weight.absmax": np.ones((), "f4")}, "bitsandbytes"),
        ({UNET + "out.2.qweight": np.ones((), "f4")}, "4-bit"),
    ],
)
def test_other_quantisations_are_named(extra, match, whole, bare, tmp_path):
    with pytest.raises(WeightsError, match=match):
        open_base(save(tmp_path / "q.safetensors", whole | extra), config=bare)


def test_plain_fp8_says_how_coarse_it_is(whole, bare, tmp_path):
    cast = {k: v.astype(ml_dtypes.float8_e5m2) if v.ndim > 1 else v for k, v in whole.items()}
    with open_base(save(tmp_path / "f8.safetensors", cast), config=bare) as files:
        assert "float8_e5m2" in files.notes[0]
