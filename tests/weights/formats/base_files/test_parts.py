"""A base in pieces: a UNet, a VAE or text encoders of their own, shards, wrappers' names."""

import shutil

import numpy as np
import pytest

from persongen_jax.convert.identify import identify
from persongen_jax.weights.errors import BadConfig, KeyMismatch, MissingFile, WeightsError
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from persongen_jax.weights.formats.sdxl.opening import open_base
from tests.weights.formats.base_files.bases import (
    UNET,
    VAE,
    check_same,
    edited,
    only,
    save,
)

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
