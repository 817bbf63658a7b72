"""One random pair in every spelling of known tools gives the same weights, bit for bit."""

import json

import numpy as np
import pytest

from persongen_jax.weights.errors import MissingFile, UnsupportedAdapter
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.formats.lora.reading import read_lora
from tests.helpers.lora_files import save
from tests.weights.formats.lora_pairs import (
    ALPHA,
    ATTENTION,
    MODULES,
    RANK,
    TEXT,
    UNET,
    WIDTHS,
    halves,
)

SGM = "input_blocks.4.1.transformer_blocks.0"

PAIRS = {
    "diffusers": ("lora.down.weight", "lora.up.weight"),
    "linear layer": ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    "peft": ("lora_A.weight", "lora_B.weight"),
    "named": ("lora_A.myname.weight", "lora_B.myname.weight"),
    "default": ("lora_A.default_0.weight", "lora_B.default_0.weight"),
    "kohya": ("lora_down.weight", "lora_up.weight"),
}

# Name -> (component, key without its ending).
STEMS = {
    "diffusers": ("unet", f"unet.{UNET}"),
    "diffusers, its name twice": ("unet", f"unet.unet.{UNET}"),
    "compiled": ("unet", f"unet._orig_mod.{UNET}"),
    "compiled, block by block": ("unet", f"unet.{UNET.replace('.attn1', '._orig_mod.attn1')}"),
    "no prefix": ("unet", UNET),
    "no prefix, sgm": ("unet", f"{SGM}.attn1.to_k"),
    "several processes": ("unet", f"module.{UNET}"),
    "peft": ("unet", f"base_model.model.{UNET}"),
    "peft under a component": ("unet", f"unet.base_model.model.{UNET}"),
    "kohya": ("unet", f"lora_unet_{UNET.replace('.', '_')}"),
    "kohya, sgm": ("unet", f"lora_unet_{SGM.replace('.', '_')}_attn1_to_k"),
    "lycoris": ("unet", f"lycoris_{UNET.replace('.', '_')}"),
    "lycoris, sgm": ("unet", f"lycoris_unet_{SGM.replace('.', '_')}_attn1_to_k"),
    "onetrainer, omi": ("unet", f"unet.{SGM}.attn1.to_k"),
    "onetrainer, dots": ("unet", f"lora_unet.{UNET}"),
    "comfy": ("unet", f"diffusion_model.{SGM}.attn1.to_k"),
    "comfy, diffusers' blocks": ("unet", f"diffusion_model.{UNET}"),
    "checkpoint": ("unet", f"model.diffusion_model.{SGM}.attn1.to_k"),
}

for number, (component, short) in enumerate((("text_encoder", "l"), ("text_encoder_2", "g")), 1):
    inner = f"text_model.{TEXT}"
    flat = inner.replace(".", "_")
    STEMS |= {
        f"{component}: {name}": (component, stem)
        for name, stem in {
            "diffusers": f"{component}.{inner}",
            "diffusers, transformers 5": f"{component}.{TEXT}",
            "no prefix": inner,
            "peft": f"base_model.model.{inner}",
            "kohya": f"lora_te{number}_{flat}",
            "lycoris": f"lycoris_te{number}_{flat}",
            "onetrainer, omi": f"clip_{short}.{inner}",
            "onetrainer, dots": f"lora_te{number}.{inner}",
            "comfy": f"text_encoders.clip_{short}.transformer.{inner}",
            "comfy, short": f"text_encoders.clip_{short}.{inner}",
        }.items()
    }

OLD = {
    "unet": (f"unet.{ATTENTION}.attn1.processor.to_k_lora", UNET),
    "unet, out": (f"unet.{ATTENTION}.attn1.processor.to_out_lora", f"{ATTENTION}.attn1.to_out.0"),
    "no prefix": (f"{ATTENTION}.attn1.processor.to_k_lora", UNET),
    "text": ("text_encoder.text_model.encoder.layers.1.self_attn.to_q_lora", TEXT),
}


def check(found, component, path, alpha):
    assert {c: list(layers) for c, layers in found.items()} == {component: [path]}
    lora, (down, up) = found[component][path], halves(component)
    assert np.array_equal(lora.down, down) and np.array_equal(lora.up, up)
    assert lora.alpha == alpha and lora.scale == (1.0 if alpha is None else alpha / RANK)


@pytest.mark.parametrize("pair", PAIRS)
def test_every_spelling_is_the_same_pair(pair):
    """Every prefix with every ending, with and without alpha."""
    for name, (component, stem) in STEMS.items():
        down, up = halves(component)
        tensors = {f"{stem}.{PAIRS[pair][0]}": down, f"{stem}.{PAIRS[pair][1]}": up}
        if "base_model" not in stem:  # there alpha is elsewhere, and its absence causes a warning
            check(read_lora(DictSource(tensors, name), MODULES), component, _path(component), None)
        for ending in ("alpha", "lora.alpha") if pair == "diffusers" else ("alpha",):
            with_alpha = {**tensors, f"{stem}.{ending}": np.float32(ALPHA)}
            found = read_lora(DictSource(with_alpha, name), MODULES)
            check(found, component, _path(component), ALPHA)


def _path(component):
    return UNET if component == "unet" else TEXT


@pytest.mark.parametrize("case", OLD)
def test_the_first_attention_processors(case):
    stem, path = OLD[case]
    component = "text_encoder" if case == "text" else "unet"
    down, up = halves(component)
    tensors = {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    check(read_lora(DictSource(tensors), MODULES), component, path, None)
    for ending in (".alpha", "_lora.alpha"):
        alpha = {stem.removesuffix("_lora") + ending: np.float32(ALPHA)}
        check(read_lora(DictSource({**tensors, **alpha}), MODULES), component, path, ALPHA)


@pytest.mark.parametrize(
    ("stem", "component", "path"),
    [
        ("lora_te2_text_projection", "text_encoder_2", "text_projection"),
        ("clip_g.text_projection", "text_encoder_2", "text_projection"),
        (
            "text_encoders.clip_g.transformer.text_projection",
            "text_encoder_2",
            "text_projection",
        ),
        ("diffusion_model.middle_block.1.proj_in", "unet", "mid_block.attentions.0.proj_in"),
        ("unet.output_blocks.0.1.proj_in", "unet", "up_blocks.0.attentions.0.proj_in"),
    ],
)
def test_other_places(stem, component, path):
    down, up = halves(component)
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    check(read_lora(DictSource(tensors), MODULES), component, path, None)


def peft_folder(folder, component="unet", prefix="", **settings):
    down, up = halves(component)
    stem = f"base_model.model.{prefix}{_path(component)}"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    save(folder / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_a_peft_folder_its_file_and_one_per_component(tmp_path):
    folder = peft_folder(tmp_path / "one")
    for path in (folder, folder / "adapter_model.safetensors"):
        check(read_lora(path, MODULES), "unet", UNET, ALPHA)
    for component in WIDTHS:
        prefix = "" if component == "unet" else "text_model."
        peft_folder(tmp_path / "all" / component, component, prefix)
    found = read_lora(tmp_path / "all", MODULES)
    for component in WIDTHS:
        check({component: found[component]}, component, _path(component), ALPHA)


def test_peft_settings_by_module(tmp_path):
    folder = peft_folder(tmp_path, alpha_pattern={"attn1.to_k": 6}, use_rslora=True)
    lora = read_lora(folder, MODULES)["unet"][UNET]
    assert lora.scale == pytest.approx(6 / RANK**0.5)


def test_the_class_tells_the_text_encoders_apart(tmp_path):
    same = {**MODULES, "text_encoder": {TEXT: (10, 10)}}
    folder = peft_folder(tmp_path, "text_encoder_2", "text_model.")
    with pytest.raises(UnsupportedAdapter, match="text_encoder or text_encoder_2"):
        read_lora(folder, same)
    mapping = {"base_model_class": "CLIPTextModelWithProjection"}
    folder = peft_folder(tmp_path, "text_encoder_2", "text_model.", auto_mapping=mapping)
    check(read_lora(folder, same), "text_encoder_2", TEXT, ALPHA)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "VERA"}, "PEFT's type VERA"),
        ({"init_lora_weights": "pissa_niter_4"}, "base weights that training has changed"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"modules_to_save": ["conv_in"]}, "modules_to_save"),
    ],
)
def test_peft_folders_that_mean_something_else(tmp_path, settings, words):
    with pytest.raises(UnsupportedAdapter, match=words):
        read_lora(peft_folder(tmp_path, **settings), MODULES)


def test_peft_file_without_its_config_is_warned_of(tmp_path):
    folder = peft_folder(tmp_path)
    (folder / "adapter_config.json").unlink()
    with pytest.warns(UserWarning, match="alpha is taken to be the rank"):
        check(read_lora(folder / "adapter_model.safetensors", MODULES), "unet", UNET, None)


def test_folders_of_diffusers_and_of_nothing(tmp_path):
    down, up = halves("unet")
    tensors = {f"unet.{UNET}.lora.down.weight": down, f"unet.{UNET}.lora.up.weight": up}
    save(tmp_path / "pytorch_lora_weights.safetensors", tensors)
    check(read_lora(tmp_path, MODULES), "unet", UNET, None)
    (tmp_path / "pytorch_lora_weights.safetensors").rename(tmp_path / "mine.safetensors")
    with pytest.raises(MissingFile, match=r"give the file itself. There are: mine.safetensors"):
        read_lora(tmp_path, MODULES)


def test_a_config_with_a_byte_order_mark(tmp_path):
    config = peft_folder(tmp_path) / "adapter_config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    check(read_lora(tmp_path, MODULES), "unet", UNET, ALPHA)
    config.write_text("[")
    with pytest.raises(UnsupportedAdapter, match="adapter_config.json is not valid JSON"):
        read_lora(tmp_path, MODULES)
