"""One random pair in every spelling of known tools gives the same weights, bit for bit."""

import json

import numpy as np
import pytest

from persongen_jax.weights.errors import MissingFile, UnsupportedAdapter
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.formats.lora.reading import read_lora
from tests.helpers.lora_files import save

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0"
SGM = "input_blocks.4.1.transformer_blocks.0"
UNET = f"{ATTENTION}.attn1.to_k"
TEXT = "encoder.layers.1.self_attn.q_proj"
RANK, ALPHA = 4, 2.0
WIDTHS = {"unet": 12, "text_encoder": 8, "text_encoder_2": 10}

MODULES = {
    "unet": {
        f"{ATTENTION}.{name}": (12, 12)
        for name in ("attn1.to_q", "attn1.to_k", "attn1.to_out.0", "attn2.to_k", "ff.net.2")
    }
    | {"down_blocks.0.resnets.0.conv1": (6, 4, 3, 3), "up_blocks.0.attentions.0.proj_in": (12, 12)}
    | {"mid_block.attentions.0.proj_in": (12, 12), "conv_in": (4, 4, 3, 3)},
    "text_encoder": {TEXT: (8, 8), "encoder.layers.0.mlp.fc1": (16, 8)},
    "text_encoder_2": {TEXT: (10, 10), "text_projection": (10, 10)},
}

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


def halves(component, seed=0):
    rng, width = np.random.default_rng(seed), WIDTHS[component]
    shapes = ((RANK, width), (width, RANK))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


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


def test_two_adapters_in_one_file_are_not_mixed():
    down, up = halves("unet")
    tensors = {f"unet.{UNET}.lora_A.{name}.weight": down for name in "ab"}
    tensors |= {f"unet.{UNET}.lora_B.{name}.weight": up for name in "ab"}
    with pytest.raises(UnsupportedAdapter, match="are both down.*several files"):
        read_lora(DictSource(tensors), MODULES)


# ---- For another base --------------------------------------------------------------------------


def pair(stem, inner, outer=None):
    down, up = np.ones((2, inner), np.float32), np.ones((outer or inner, 2), np.float32)
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}


TE = "text_model_encoder_layers_1_self_attn_q_proj"
OTHER_BASES = {
    "sd 1's text encoder alone": (pair(f"lora_te_{TE}", 8), "SD 1.x"),
    "with dots": (pair(f"lora_te.text_model.{TEXT}", 8), "SD 1.x"),
    "sd 2's text encoder alone": (pair(f"lora_te_{TE}", 1024), "SD 2.x"),
    "sd 1, cross-attention": (
        pair(f"lora_unet_{ATTENTION.replace('.', '_')}_attn2_to_k", 768, 12),
        "SD 1.x",
    ),
    "sd 2, diffusers": (pair(f"unet.{ATTENTION}.attn2.to_k", 1024, 12), "SD 2.x"),
    "the refiner": (pair(f"unet.{ATTENTION}.attn2.to_k", 1280, 12), "the SDXL refiner"),
    "sd 1, blocks that SDXL lacks": (
        pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 320),
        "SD 1.x or 2.x",
    ),
    "sd 1, such blocks and widths": (
        pair("lora_unet_up_blocks_3_attentions_0_transformer_blocks_0_attn2_to_v", 768, 320),
        "SD 1.x",
    ),
    "flux, kohya": (pair("lora_unet_double_blocks_0_img_attn_qkv", 30), "FLUX"),
    "flux, diffusers": (
        pair("transformer.single_transformer_blocks.0.attn.to_q", 30),
        "FLUX",
    ),
    "flux, comfy": (pair("diffusion_model.single_blocks.0.linear1", 30), "FLUX"),
    "sd 3, comfy": (pair("diffusion_model.joint_blocks.0.x_block.attn.qkv", 30), "SD 3"),
    "sd 3, diffusers": (pair("transformer.transformer_blocks.0.attn.add_q_proj", 30), "SD 3"),
    "third text encoder": (pair("lora_te3_encoder_block_0_layer_0_SelfAttention_k", 30), "SD 3"),
    "cascade": (pair("lora_prior_unet_blocks_0", 30), "Stable Cascade"),
    "wan": (pair("diffusion_model.blocks.0.self_attn.q", 30), "a diffusion transformer"),
}


@pytest.mark.parametrize("case", OTHER_BASES)
def test_a_lora_of_another_base_is_refused(case):
    tensors, name = OTHER_BASES[case]
    with pytest.raises(UnsupportedAdapter, match=f"x.bin: this is a LoRA for {name}"):
        read_lora(DictSource(tensors, "x.bin"), MODULES)


@pytest.mark.parametrize(
    ("notes", "name"),
    [
        ({"ss_base_model_version": "sd_v1"}, "SD 1.x"),
        ({"ss_v2": "True"}, "SD 2.x"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "SD 1.x"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "FLUX"),
    ],
)
def test_notes_tell_where_keys_do_not(tmp_path, notes, name):
    path = save(tmp_path / "x.safetensors", pair(f"unet.{UNET}", 12), notes)
    with pytest.raises(UnsupportedAdapter, match=f"this is a LoRA for {name}"):
        read_lora(path, MODULES)
    # If SDXL's widths are present, they count.
    both = {**pair(f"unet.{UNET}", 12), **pair(f"unet.{ATTENTION}.attn2.to_k", 12)}
    assert len(read_lora(save(path, both, notes), MODULES)["unet"]) == 2


def test_sdxl_s_own_files_are_not_refused(tmp_path):
    notes = {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}
    path = save(tmp_path / "x.safetensors", pair(f"lora_te_{TE}", 8), notes)
    assert list(read_lora(path, MODULES)) == ["text_encoder"]
    beside = {**pair(f"lora_te_{TE}", 8), **pair(f"unet.{ATTENTION}.attn2.to_k", 12)}
    assert set(read_lora(DictSource(beside), MODULES)) == {"unet", "text_encoder"}


@pytest.mark.parametrize(
    "notes",
    [
        {"ss_base_model_version": "SD 1.5"},
        {"ss_base_model_version": "sd15"},
        {"modelspec.architecture": "stable-diffusion-1.5/lora"},
    ],
)
def test_notes_of_an_older_base(notes, tmp_path):
    tensors = pair(f"lora_te1_{TE}", 8)
    with pytest.raises(UnsupportedAdapter, match="this is a LoRA for SD 1.x"):
        read_lora(save(tmp_path / "a.safetensors", tensors, notes), MODULES)
    fine = {"ss_base_model_version": "swan_mix_xl"}
    assert read_lora(save(tmp_path / "b.safetensors", tensors, fine), MODULES)


def test_one_encoders_prefix_beside_a_unet_that_tells_nothing(tmp_path):
    """SD 1.x has self-attention layers as wide as some of SDXL's."""
    both = {**pair(f"lora_te_{TE}", 8), **pair(f"unet.{ATTENTION}.attn1.to_k", 8)}
    with pytest.raises(UnsupportedAdapter, match="this is a LoRA for SD 1.x"):
        read_lora(DictSource(both), MODULES)


def test_peft_s_settings_name_another_base(tmp_path):
    folder = tmp_path / "peft"
    folder.mkdir()
    save(folder / "adapter_model.safetensors", pair(f"base_model.model.{UNET}", 8))
    config = {"peft_type": "LORA", "r": RANK, "base_model_name_or_path": "runwayml/sd-v1-5"}
    config["auto_mapping"] = {"base_model_class": "UNet2DConditionModel"}
    for name, refused in (("x/stable-diffusion-v1-5", True), ("x/stable-diffusion-xl-base", False)):
        config["base_model_name_or_path"] = name
        (folder / "adapter_config.json").write_text(json.dumps(config))
        if refused:
            with pytest.raises(UnsupportedAdapter, match="this is a LoRA for SD 1.x"):
                read_lora(folder, MODULES)
        else:
            assert read_lora(folder, MODULES)
    config["use_dora"] = True
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedAdapter, match="no magnitude, though the settings say use_dora"):
        read_lora(folder, MODULES)
    config |= {"use_dora": False, "init_lora_weights": "lora_ga"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedAdapter, match="lora_ga"):
        read_lora(folder, MODULES)
    (folder / "adapter_config.json").write_bytes(json.dumps(config).encode("utf-16-le"))
    with pytest.raises(UnsupportedAdapter, match="adapter_config.json: saved as UTF-16"):
        read_lora(folder, MODULES)


def test_a_folder_with_two_adapters_is_not_read_by_halves(tmp_path):
    save(tmp_path / "adapter_model.safetensors", pair(f"base_model.model.{UNET}", 8))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save(tmp_path / "pytorch_lora_weights.safetensors", pair(f"unet.{UNET}", 8))
    with pytest.raises(UnsupportedAdapter, match="holds several adapters: .*Give one of them"):
        read_lora(tmp_path, MODULES)


def test_expressions_in_peft_s_settings(tmp_path):
    """Ordinary ones are applied as in PEFT, others refused."""
    save(tmp_path / "adapter_model.safetensors", pair(f"base_model.model.{UNET}", 8))
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 1.0}
    config["auto_mapping"] = {"base_model_class": "UNet2DConditionModel"}
    for pattern, alpha in (("attn1.to_(k|q)", 3.0), (r".*attn1\.to_k", 3.0), (".*attn2.to_k", 1.0)):
        config["alpha_pattern"] = {pattern: 3.0}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        assert read_lora(tmp_path, MODULES)["unet"][UNET].alpha == alpha, pattern
    for pattern in ("(a*)*b", "(", "(.*)(.*)(.*)(.*)(.*)k"):
        config["alpha_pattern"] = {pattern: 3.0}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(UnsupportedAdapter, match="alpha_pattern"):
            read_lora(tmp_path, MODULES)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (f"unet.{ATTENTION}.norm1.diff", "trained norms"),
        (f"unet.{ATTENTION}.norm1.bias", "trained biases"),
        (f"unet.{UNET}.base_layer.weight", "a whole model with PEFT's layers"),
        (f"lora_unet_{UNET.replace('.', '_')}.scalar", "scalar was not folded in"),
        ("bundle_emb.me.emb_params", "embeddings of words for SD 1.x"),
    ],
)
def test_unmatched_keys_are_named_by_kind(key, said):
    beside = {**pair(f"unet.{UNET}", 8), key: np.ones((8, 8), np.float32)}
    with pytest.raises(UnsupportedAdapter, match=f"belongs to .*{said}"):
        read_lora(DictSource(beside, "x"), MODULES)


def test_counters_are_no_part_of_it():
    beside = {**pair(f"unet.{UNET}", 8), "global_step": np.array(7), "step": np.array([3])}
    assert list(read_lora(DictSource(beside, "x"), MODULES)["unet"]) == [UNET]


def test_files_without_any_lora_are_refused():
    word = {"clip_l": np.ones((2, 768), "f4"), "clip_g": np.ones((2, 1280), "f4")}
    with pytest.raises(UnsupportedAdapter, match="this is a Textual Inversion embedding, and no"):
        read_lora(DictSource(word, "x"), MODULES)


# ---- Nothing in it -----------------------------------------------------------------------------


def test_a_file_with_nothing_in_it():
    with pytest.raises(UnsupportedAdapter, match="holds no tensors"):
        read_lora(DictSource({}, "x"), MODULES)
    words = {"bundle_emb.me.clip_l": np.ones((2, 8)), "bundle_emb.me.clip_g": np.ones((2, 10))}
    with pytest.raises(UnsupportedAdapter, match="no LoRA, only embeddings"):
        read_lora(DictSource(words, "x"), MODULES)
