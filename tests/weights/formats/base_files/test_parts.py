"""A base in pieces: a UNet, a VAE or text encoders of their own, shards, wrappers, fp8."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from persongen_jax.convert import __main__ as convert
from persongen_jax.convert.identify import identify
from persongen_jax.weights.errors import BadConfig, KeyMismatch, MissingFile, WeightsError
from persongen_jax.weights.files.directory import read_config
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from persongen_jax.weights.formats.sdxl.opening import open_base
from tests.weights.formats.base_files.bases import (
    MARKERS,
    UNET,
    VAE,
    check_same,
    edited,
    only,
    save,
)
from tests.weights.formats.sgm import unet_to_sgm

TEXT_2 = "conditioner.embedders.1.model."


def test_known_extras_are_ignored_with_a_line(whole, state, bare, tmp_path):
    extras = dict.fromkeys(("alphas_cumprod", "betas", "posterior_variance"), np.zeros(1000, "f4"))
    extras |= {"global_step": np.array(7), VAE + "loss.logvar": np.zeros((), np.float32)}
    path = save(tmp_path / "full.safetensors", whole | extras)
    with open_base(path, config=bare) as files:
        check_same(files, state)
    (note,) = files.notes
    assert all(name in note for name in extras) and "position_ids" not in note
    with pytest.raises(KeyMismatch, match="something_else"):
        path = save(tmp_path / "odd.safetensors", whole | {"something_else": np.zeros(1, "f4")})
        open_base(path, config=bare)


def unet_file(kind, state, whole, tmp_path):
    tensors = {
        "sgm": lambda: only(whole, UNET),
        "sgm, flat": lambda: {
            k.removeprefix(UNET): v for k, v in only(whole, UNET).items() if "model_ema" not in k
        },
        "diffusers, flat": lambda: state["unet"],
        "diffusers, unet.": lambda: {f"unet.{k}": v for k, v in state["unet"].items()},
    }[kind]()
    return save(tmp_path / "unet.safetensors", tensors)


@pytest.mark.parametrize("kind", ["sgm", "sgm, flat", "diffusers, flat", "diffusers, unet."])
def test_a_unet_alone(kind, state, whole, tiny_base, bare, tmp_path):
    path = unet_file(kind, state, whole, tmp_path)
    assert identify(path).kind == ("unet-sgm" if kind.startswith("sgm") else "unet")
    with pytest.raises(MissingFile, match="holds the UNet;.*--vae.*--text-encoders"):
        open_base(path, config=bare)
    with open_base(path, config=tiny_base) as files:  # its weights fill in the rest
        check_same(files, state)
        assert len(files.notes) == 3 and "without the VAE" in files.notes[0]
    with open_base(tiny_base, unet=path) as files:
        check_same(files, state)
        assert not files.notes
    options = {"vae": tiny_base / "vae", "text_encoders": tiny_base}
    with open_base(path, config=bare, **options) as files:
        check_same(files, state)


def test_a_vae_alone(whole, state, tiny_base, bare, tmp_path):
    plain = save(tmp_path / "vae.safetensors", state["vae"])
    sgm = save(tmp_path / "sgm.safetensors", only(whole, VAE))
    flat = {k.removeprefix(VAE): v for k, v in only(whole, VAE).items()}
    flat = save(tmp_path / "flat.safetensors", flat | {"loss.logvar": np.zeros((), "f4")})
    for path, kind in ((plain, "vae"), (sgm, "vae-sgm"), (flat, "vae-sgm")):
        assert identify(path).kind == kind
        with open_base(tiny_base, vae=path) as files:
            check_same(files, state)
        with pytest.raises(WeightsError, match="this is a VAE alone.*--vae"):
            open_base(path, config=tiny_base)
    rest = {key: value for key, value in whole.items() if not key.startswith(VAE)}
    rest = save(tmp_path / "rest.safetensors", rest)
    with pytest.raises(MissingFile, match="the VAE is missing. Give vae="):
        open_base(rest, config=bare)
    with open_base(rest, config=bare, vae=sgm) as files:
        check_same(files, state)
    assert identify(rest).facts["missing"] == "the VAE"
    with pytest.raises(WeightsError, match="the VAE is not in it, but the UNet"):
        path = save(tmp_path / "unet.safetensors", state["unet"])
        open_base(tiny_base, vae=path)
    other = edited(bare, tmp_path, vae={"scaling_factor": 0.18215})
    with pytest.raises(BadConfig, match="scaling_factor is 0.18215 and the base's 0.13025"):
        open_base(tiny_base, vae=other)


def test_no_text_encoders(whole, state, tiny_base, bare, tmp_path):
    path = save(tmp_path / "a.safetensors", only(whole, UNET, VAE))
    with pytest.raises(MissingFile, match="text encoder.*--text-encoders"):
        open_base(path, config=bare)
    with open_base(path, config=bare, text_encoders=tiny_base) as files:
        check_same(files, state)


def test_what_a_directory_lacks_is_told_at_once(bare, tiny_base):
    with pytest.raises(
        MissingFile, match="holds no weights; the UNet.*are missing. .*--unet.*--vae"
    ):
        open_base(bare)


def test_one_shard_and_an_index_lead_to_their_folder(whole, bare, tmp_path):
    path = save(tmp_path / "model-00001-of-00002.safetensors", only(whole, UNET))
    with pytest.raises(WeightsError, match="shard 1 of 2. Give the folder"):
        open_base(path, config=bare)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(WeightsError, match="an index of shards. Give its folder"):
        open_base(index, config=bare)


WRAPPED = {
    "several devices": "module.{}",
    "compiled": "_orig_mod.{}",
    "both": "module._orig_mod.{}",
    "inside": "{}",
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_prefixes_of_torchs_wrappers_are_removed(kind, whole, state, bare, tmp_path):
    names = {key: WRAPPED[kind].format(key) for key in whole}
    if kind == "inside":
        names = {key: key.replace(UNET, UNET + "_orig_mod.") for key in whole}
    path = save(tmp_path / "a.safetensors", {names[key]: value for key, value in whole.items()})
    with open_base(path, config=bare) as files:
        check_same(files, state)


def test_names_that_some_tools_write_beside_sgms(whole, state, bare, tmp_path):
    """ComfyUI's transposed projection, and the first text encoder's, which nothing reads."""
    projection = f"{TEXT_2}text_projection"
    extra = {key: value for key, value in whole.items() if key != projection}
    extra[f"{projection}.weight"] = np.ascontiguousarray(whole[projection].T)
    extra["conditioner.embedders.0.text_projection.weight"] = np.zeros((2, 2), "f4")
    extra |= {"alphas_cumprod_next": np.zeros(3, "f4"), f"{VAE}logvar": np.zeros(1, "f4")}
    with open_base(save(tmp_path / "a.safetensors", extra), config=bare) as files:
        check_same(files, state)


def test_integers_are_no_weights(tiny_base, state, tmp_path):
    key = "conv_in.weight"
    path = save(
        tmp_path / "unet.safetensors", state["unet"] | {key: state["unet"][key].astype("i1")}
    )
    with pytest.raises(WeightsError, match="'conv_in.weight' is stored as int8"):
        load_sdxl(tiny_base, unet=path)


def test_a_vae_with_more_channels_is_refused(whole, tiny_base, tmp_path):
    flat = {k.removeprefix(VAE): v for k, v in only(whole, VAE).items()}
    shape = list(flat["decoder.conv_in.weight"].shape)
    flat["decoder.conv_in.weight"] = np.zeros([shape[0], 16, *shape[2:]], "f4")
    with pytest.raises(WeightsError, match="latents have 16 channels .*and 4 are needed"):
        open_base(tiny_base, vae=save(tmp_path / "ae.safetensors", flat))


def test_one_text_encoders_folder(tiny_base, state, tmp_path):
    shutil.copytree(tiny_base / "text_encoder", tmp_path / "sd15" / "text_encoder")
    with open_base(tiny_base, text_encoders=tmp_path / "sd15") as files:
        check_same(files, state)


@pytest.mark.parametrize("option", ["path", "config", "unet", "vae", "text_encoders"])
def test_values_that_are_not_paths_are_refused(option, tiny_base):
    with pytest.raises(MissingFile, match="=5: give a path"):
        open_base(**{"path": tiny_base, option: 5})


JOINT = "transformer_blocks.0.attn.add_q_proj.weight"

OTHERS = {
    "FLUX": f"single_transformer_blocks.0.attn.to_q.weight {JOINT}",
    "SD 3": JOINT,
    "Qwen-Image": f"{JOINT} transformer_blocks.0.img_mod.1.weight",
    "PixArt": "blocks.0.cross_attn.q_linear.weight y_embedder.y_embedding",
    "Wan": "blocks.0.self_attn.q.weight",
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_called_by_their_names(family, bare, tmp_path):
    tensors = {key: np.zeros((2, 2), "f4") for key in OTHERS[family].split()}
    path = save(tmp_path / "a.safetensors", tensors)
    assert identify(path).facts["family"] == family
    with pytest.raises(WeightsError, match=f"this is {family}"):
        open_base(path, config=bare)


def test_text_encoders_in_files_of_their_own(whole, state, tiny_base, bare, tmp_path):
    """transformers' names in one folder, open_clip's in a file; the base provides the rest."""
    path = save(tmp_path / "a.safetensors", only(whole, UNET, VAE))
    (tmp_path / "both").mkdir()
    temperature, unread = np.ones((), "f4"), np.zeros((4, 4), "f4")
    first = state["text_encoder"] | {"logit_scale": temperature, "text_projection.weight": unread}
    first = save(tmp_path / "both" / "clip_l.safetensors", first)
    save(tmp_path / "both" / "clip_g.safetensors", state["text_encoder_2"])
    with open_base(path, config=bare, text_encoders=tmp_path / "both") as files:
        check_same(files, state)
        said = {note.rpartition(": ")[2] for note in files.notes}
        assert said == {"the first text encoder", "the second text encoder"}
    flat = {k.removeprefix(TEXT_2): v for k, v in only(whole, TEXT_2).items()}
    second = save(tmp_path / "open_clip.safetensors", flat)
    assert identify(first).kind == identify(second).kind == "clip-text"
    for one in (first, second):
        with open_base(tiny_base, text_encoders=one) as files:
            check_same(files, state)
    with pytest.raises(MissingFile, match="the first text encoder is missing"):
        open_base(path, config=bare, text_encoders=second)
    save(tmp_path / "both" / "copy.safetensors", state["text_encoder_2"])
    with pytest.raises(WeightsError, match="copy.safetensors: the second .*Leave one of them"):
        open_base(tiny_base, text_encoders=tmp_path / "both")
    wide = {"text_model.embeddings.token_embedding.weight": np.zeros((9, 7), "f4")}
    with pytest.raises(WeightsError, match="width 7; the base's have"):
        open_base(tiny_base, text_encoders=save(tmp_path / "wide.safetensors", wide))


def test_files_that_are_no_base(tiny_base, bare, tmp_path):
    lora = {"unet.x.attn1.to_k.lora.down.weight": np.zeros((4, 8), "f4")}
    lora |= {"unet.x.attn1.to_k.lora.up.weight": np.zeros((8, 4), "f4")}
    with pytest.raises(WeightsError, match="LoRA"):
        open_base(save(tmp_path / "lora.safetensors", lora), config=bare)
    for start, match in ((b"GGUF\3\0", "GGUF"), (b"<!DOCTYPE html>", "web page")):
        (tmp_path / "x.safetensors").write_bytes(start + bytes(40))
        with pytest.raises(WeightsError, match=match):
            open_base(tmp_path / "x.safetensors", config=bare)


@pytest.mark.parametrize("name", ["sdxl.ckpt", "sdxl.pt"])
def test_a_pickled_checkpoint(name, whole, state, bare, tmp_path):
    torch = pytest.importorskip("torch")
    inner = {key: torch.from_numpy(np.array(value)) for key, value in whole.items()}
    around = {"global_step": 3, "optimizer_states": [{0: 1}], "callbacks": {1: 2}}
    torch.save({"state_dict": inner, **around}, tmp_path / name)
    with open_base(tmp_path / name, config=bare) as files:
        check_same(files, state)
    found = identify(tmp_path / name)
    assert (found.kind, found.facts["family"]) == ("checkpoint", "SDXL")
    wrong = (tmp_path / name).rename(tmp_path / "renamed.safetensors")
    with pytest.raises(WeightsError, match="torch's own files. Rename it"):
        open_base(wrong, config=bare)
    right = save(tmp_path / "renamed.ckpt", whole)
    with open_base(right, config=bare) as files:
        check_same(files, state, ["vae"])


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


def test_inspect_prints_what_is_recognised(whole, tmp_path, capsys):
    path = save(tmp_path / "a.safetensors", only(whole, UNET, VAE) | MARKERS)
    convert.main(["inspect", str(path)])
    said = capsys.readouterr().out
    for line in (
        "family: SDXL",
        "parts: the UNet (sgm), the VAE (sgm)",
        "missing: the first text encoder, the second text encoder",
        "predicts: v_prediction, zero terminal SNR",
        "stored as: float32",
    ):
        assert line in said
