"""EVA02-CLIP against timm's and OpenCLIP's classes and the authors' own, from every layout.

What these gave for the same random weights is stored: tests/goldens/eva_clip/record.py.
"""

import math

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from ml_collections import ConfigDict
from safetensors.torch import save_file

from persongen_jax.metrics.clip_score import ClipScore
from persongen_jax.metrics.registry import open_metrics
from persongen_jax.models.encoders.eva_clip import (
    DEFAULTS,
    EvaClipOutput,
    EvaClipVisionModel,
    rotary_tables,
    rotate,
)
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.errors import BadConfig, KeyMismatch, MissingFile, WeightsError
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.formats.clip import load_clip
from persongen_jax.weights.formats.eva_clip import EvaClipFile, load_eva_vision, open_eva_clip
from persongen_jax.weights.loader import load_module, parameter_leaves
from persongen_jax.weights.recognition.eva_clip import (
    infer_eva_config,
    infer_eva_text_config,
    split_eva_towers,
)
from persongen_jax.weights.tiny_tokenizer import write_tiny_tokenizer
from tests.helpers.encoders.eva_files import (
    WORDS,
    golden,
    native_names,
    original,
    pixels,
    shapes_of,
    token_ids,
    tower_weights,
)
from tests.helpers.published_goldens import golden as published_golden
from tests.helpers.published_goldens import weights as published_weights
from tests.helpers.twins import relative_error

TOLERANCE = 1e-5  # relative, of float32


@pytest.fixture(scope="module")
def weights():
    """OpenCLIP's file: "visual.trunk." and "text."."""
    state = tower_weights(shapes_of("tiny"))
    return {key: torch.from_numpy(value.copy()) for key, value in state.items()}


@pytest.fixture(scope="module")
def native(weights):
    """The authors' file: other names, tables of positions, and an older one's bare text tower."""
    named = {key.removeprefix("text."): value for key, value in native_names(weights).items()}
    tables = ["visual.rope.freqs_cos", "visual.blocks.0.attn.rope.freqs_sin"]
    return {**named, **{key: torch.zeros(36, 64) for key in tables}}


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    """With the file in it, and the tokenizer's."""
    folder = tmp_path_factory.mktemp("eva")
    save_file(weights, folder / "eva.safetensors")
    assert write_tiny_tokenizer(folder) <= WORDS
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip(folder / "eva.safetensors")


def test_as_timm_layer_by_layer_and_whole(clip):
    wanted, tower = golden(), clip.vision_model

    @nnx.jit
    def run(tower, images):
        out = tower(images)
        first = tower.blocks[0]
        attended = first.attn(first.norm1(out.hidden_states[0]))
        mlp = first.mlp(first.norm2(out.hidden_states[0] + attended))
        return out, attended, mlp, tower.norm(out.hidden_states[-1])

    out, attended, mlp, normed = run(tower, pixels())
    assert len(out.hidden_states) == 4
    for i, state in enumerate(out.hidden_states):
        assert relative_error(state[:1], wanted[f"state {i}"]) < TOLERANCE
    assert relative_error(attended[:1], wanted["attn"]) < TOLERANCE
    assert relative_error(mlp[:1], wanted["mlp"]) < TOLERANCE
    assert relative_error(normed[:1], wanted["norm"]) < TOLERANCE
    assert relative_error(out.image_embeds, wanted["image_embeds"]) < TOLERANCE
    with pytest.raises(ValueError, match="has 3 blocks, and PuLID reads.*4, 8, 12, 16, 20"):
        _ = out.id_hidden_states
    with pytest.raises(ValueError, match=r"image_size=24 needs \[b, 24, 24, 3\]"):
        tower(np.zeros((1, 20, 20, 3), np.float32))


def test_the_text_tower_as_openclips(clip):
    found = jax.jit(lambda ids: clip.text_model(ids).text_embeds)(token_ids())
    assert relative_error(found, golden()["text_embeds"]) < TOLERANCE


def test_as_the_authors_class_with_what_pulid_reads():
    sizes, weights, known = original()
    config = {
        "hidden_size": sizes["embed_dim"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["num_heads"],
        "intermediate_size": int(sizes["embed_dim"] * sizes["mlp_ratio"]),
        "projection_dim": sizes["num_classes"],
        "image_size": sizes["img_size"],
        "patch_size": sizes["patch_size"],
    }
    source = DictSource({f"visual.{key}": value for key, value in weights.items()})
    towers = split_eva_towers(source)
    assert towers.text is None
    tower = load_module(lambda: EvaClipVisionModel(config, rngs=UnusedRngs()), towers.vision)
    images = known["in/image"].transpose(0, 2, 3, 1)
    # One program for all blocks: compiling the whole tower takes seconds.
    run = jax.jit(lambda net, weights, x: nnx.merge(net, weights)(x), static_argnums=0)
    states = [tower.embeddings(images)]
    for block in tower.blocks:
        states.append(run(*nnx.split(block), states[-1]))
    ends = nnx.jit(lambda tower, x: tower.head(tower.norm(tower.blocks[-1].first(x))))
    out = EvaClipOutput(tuple(states), ends(tower, states[-2]))
    assert run._cache_size() == 1 and len(out.id_hidden_states) == 5
    for i, state in enumerate(out.id_hidden_states):
        assert relative_error(state, known[f"out/hidden{i}"]) < TOLERANCE
    assert relative_error(out.hidden_states[1], known["out/mid_block0_out"]) < TOLERANCE
    assert relative_error(out.hidden_states[-1], known["out/all_features"]) < TOLERANCE
    assert relative_error(out.image_embeds, known["out/head"]) < TOLERANCE

    tables = rotary_tables(6, DEFAULTS["rope_grid"], 16)
    for table, axis in zip(tables, ("cos", "sin"), strict=True):
        assert np.abs(table - known[f"buffers/rope.freqs_{axis}"]).max() < 1e-6
    turned = rotate(known["in/rope_in"].transpose(0, 2, 1, 3), *tables).transpose(0, 2, 1, 3)
    assert relative_error(turned, known["out/rope_out"]) < 1e-6


@pytest.mark.parametrize("form", ["pre", "post"])
def test_eva01s_blocks_and_bigEs_as_the_authors_class(form):
    sizes, known = published_golden("eva01_clip_vision")
    weights = {f"visual.{k}": v for k, v in published_weights("eva01_clip_vision", form).items()}
    towers = split_eva_towers(DictSource(weights))
    heads = sizes["embed_dim"] // sizes["num_heads"]
    config = infer_eva_config(towers.vision, heads)
    assert config["plain"] and config["num_hidden_layers"] == sizes["depth"]
    # Neither the number of heads nor where the norms are can be seen at these sizes.
    config |= {"num_attention_heads": sizes["num_heads"], "post_norm": form == "post"}
    tower = load_module(lambda: EvaClipVisionModel(config, rngs=UnusedRngs()), towers.vision)
    images = known["in/image"].transpose(0, 2, 3, 1)
    found = nnx.jit(lambda tower, x: tower(x).image_embeds)(tower, images)
    assert relative_error(found, known[f"out/head_{form}"]) < TOLERANCE


def test_g14s_and_bigEs_sizes():
    for width, inner, heads, post_norm in ((1408, 6144, 16, False), (1792, 15360, 16, True)):
        shapes = {
            "visual.patch_embed.proj.weight": (width, 3, 14, 14),
            "visual.pos_embed": (1, 257, width),
            "visual.blocks.0.mlp.fc1.weight": (inner, width),
            "visual.blocks.0.attn.qkv.weight": (3 * width, width),
            "visual.head.weight": (1024, width),
        }
        towers = split_eva_towers(DictSource({k: np.empty(s) for k, s in shapes.items()}))
        config = infer_eva_config(towers.vision)
        assert (config["num_attention_heads"], config["post_norm"]) == (heads, post_norm)
        shape = (width, width)
        assert towers.vision.info("blocks.0.attn.v_proj.weight")[1] == shape


def test_all_layouts_hold_the_same(weights, native, clip, tmp_path):
    image = {key: value for key, value in native.items() if key.startswith("visual.")}
    bare = {key.removeprefix("visual."): value for key, value in image.items()}
    trunk, text = "visual.trunk.", {k: v for k, v in weights.items() if k.startswith("text.")}
    layouts = {
        "authors": native,
        "with text.": {**image, **text},
        "image": image,
        "bare": bare,
        "timm": {k.removeprefix(trunk): v for k, v in weights.items() if k.startswith(trunk)},
    }
    wanted = parameter_leaves(clip.vision_model)
    for name, tensors in layouts.items():
        save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "a.safetensors")
        found = parameter_leaves(load_eva_vision(tmp_path / "a.safetensors"))
        assert found.keys() == wanted.keys(), name
        assert all(np.array_equal(found[key], wanted[key]) for key in wanted), name
        with open_eva_clip(tmp_path / "a.safetensors").file as file:
            assert (split_eva_towers(file).text is None) == (name in ("image", "bare", "timm"))
    for around in ("model", "module", "state_dict"):
        torch.save({around: native, "epoch": 3}, tmp_path / f"{around}.pt")
        found = parameter_leaves(load_eva_vision(tmp_path / f"{around}.pt"))
        assert all(np.array_equal(found[key], wanted[key]) for key in wanted), around


def test_the_published_size():
    """OpenCLIP's own network has these tensors, and the authors' file the same under its names."""
    zero, known = np.zeros((), np.float32), []
    for shapes in (shapes_of("published"), native_names(shapes_of("published"))):
        source = DictSource({key: np.broadcast_to(zero, shape) for key, shape in shapes.items()})
        towers = split_eva_towers(source)
        known.append([{key: tower.info(key)[1] for key in tower.keys()} for tower in towers])
    assert known[0] == known[1]
    counts = [sum(map(math.prod, tower.values())) for tower in known[0]]
    assert [round(count / 1e6, 3) for count in counts] == [304.433, 123.650]
    assert [len(tower) for tower in known[0]] == [512, 149 + 24 * 2]
    vision, text = infer_eva_config(towers.vision), infer_eva_text_config(towers.text)
    assert vision == DEFAULTS
    own = text["text_config"]
    assert (own["num_attention_heads"], own["hidden_act"]) == (12, "gelu")
    EvaClipFile(source, towers, vision, text).check()


def test_what_is_no_eva_clip_is_refused(weights, tmp_path):
    path = tmp_path / "a.safetensors"
    block = "visual.trunk.blocks.1"

    def refused(tensors, error, match, load=load_clip):
        save_file(tensors, path)
        with pytest.raises(error, match=match):
            load(path)

    def without(*keys):
        return {key: value for key, value in weights.items() if key not in keys}

    refused({"a": torch.zeros(2)}, KeyMismatch, "no image tower of EVA-02's", load_eva_vision)
    both = {"visual.trunk.blocks.0.attn.qkv.weight": torch.zeros(9, 3), **weights}
    refused(both, WeightsError, "both mean 'blocks.0.attn.q_proj.weight'")
    plain = {f"{block[:-1]}0.mlp.fc1.weight": torch.zeros(9, 3), **weights}
    refused(plain, KeyMismatch, "blocks.0.mlp.fc2.weight")
    refused(without(f"{block}.attn.norm.bias"), KeyMismatch, "blocks.1.attn.inner_attn_ln.bias")
    refused(without(f"{block}.attn.q_proj.bias"), KeyMismatch, "blocks.1.attn.q_proj.bias")
    refused(without("text.ln_final.bias"), KeyMismatch, "text tower.*(?s:.)*final_layer_norm.bias")
    refused({**weights, "visual.more": torch.zeros(2)}, KeyMismatch, r"image tower.*(?s:.)*more")
    refused({**weights, "more": torch.zeros(2)}, KeyMismatch, r"text tower.*(?s:.)*more")
    misshapen = {**weights, f"{block}.mlp.fc1_x.bias": torch.zeros(3)}
    refused(misshapen, KeyMismatch, r"blocks.1.mlp.w2.bias: file \(3,\), model \(341,\)")
    twice = {**weights, f"{block}.attn.q_bias": torch.zeros(128)}
    refused(twice, WeightsError, "both mean 'blocks.1.attn.q_proj.bias'")
    positions = {**weights, "visual.trunk.pos_embed": torch.zeros(1, 8, 128)}
    refused(positions, BadConfig, "a class token and a square")
    narrow = {**weights, "visual.trunk.patch_embed.proj.weight": torch.zeros(100, 3, 4, 4)}
    refused(narrow, BadConfig, "multiple of 64")
    refused(weights, MissingFile, "clip-vit-base-patch32 is every CLIP's")  # no tokenizer
    with pytest.raises(MissingFile, match="QuanSun/EVA-CLIP"):
        load_eva_vision(tmp_path / "none.pt")


def test_clip_i_by_the_image_tower_alone(native, folder, tmp_path, capsys):
    alone = tmp_path / "image.safetensors"
    save_file({k: v for k, v in native.items() if k.startswith("visual.")}, alone)
    names = ("clip_t", "clip_i", "cmmd")
    config = ConfigDict({"metrics": names, "clip": str(alone)})
    found = open_metrics(config)
    assert [metric.title for metric in found] == [
        "CLIP-I",
        "CMMD (EVA-CLIP, patches of 4 at 24 px)",
    ]
    said = capsys.readouterr().out
    assert said == (
        f"CLIP-T is not measured: {alone} holds an image tower alone, and CLIP-T needs the text "
        "tower too: give a whole CLIP\n"
    )
    judge = found[0].encoder.clip
    features = judge.image_features(
        [picture(0), picture(1)], lambda image, size: pixels()[image[0, 0, 0]]
    )
    wanted = golden()["image_embeds"]
    lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
    assert relative_error(features, wanted / lengths) < TOLERANCE
    with pytest.raises(WeightsError, match="needs the text tower"):
        judge.score([picture(0)], ["a man"])
    whole = ClipScore(folder / "eva.safetensors")
    assert len(whole.networks) == 2 and len(found[0].networks()) == 1
    score = whole.score_features(judge.image_features([picture(0)]), ["a man"])
    assert whole.score([picture(0)], ["a man"]) == pytest.approx(score, abs=1e-4)


def picture(number):
    """Its first value is ``number``."""
    image = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
    image[0, 0, 0] = number
    return image
