"""LoRA files for another base, without a LoRA or with one twice; PEFT's settings."""

import json

import numpy as np
import pytest

from persongen_jax.weights.errors import UnsupportedAdapter
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.formats.lora.reading import read_lora
from tests.helpers.lora_files import save
from tests.weights.formats.lora_pairs import (
    ATTENTION,
    MODULES,
    RANK,
    TEXT,
    UNET,
    halves,
    pair,
)


def test_two_adapters_in_one_file_are_not_mixed():
    down, up = halves("unet")
    tensors = {f"unet.{UNET}.lora_A.{name}.weight": down for name in "ab"}
    tensors |= {f"unet.{UNET}.lora_B.{name}.weight": up for name in "ab"}
    with pytest.raises(UnsupportedAdapter, match="are both down.*several files"):
        read_lora(DictSource(tensors), MODULES)


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


def test_a_file_with_nothing_in_it():
    with pytest.raises(UnsupportedAdapter, match="holds no tensors"):
        read_lora(DictSource({}, "x"), MODULES)
    words = {"bundle_emb.me.clip_l": np.ones((2, 8)), "bundle_emb.me.clip_g": np.ones((2, 10))}
    with pytest.raises(UnsupportedAdapter, match="no LoRA, only embeddings"):
        read_lora(DictSource(words, "x"), MODULES)
