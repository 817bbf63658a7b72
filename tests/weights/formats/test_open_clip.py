"""CLIP in OpenAI's and OpenCLIP's layout, against transformers' CLIPModel with the same weights."""

import json
import math

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from persongen_jax.metrics.clip_score import ClipScore
from persongen_jax.weights.errors import BadConfig, KeyMismatch, MissingFile
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.formats.clip import load_clip
from persongen_jax.weights.formats.open_clip import CONFIG
from persongen_jax.weights.recognition.open_clip import (
    choose_activation,
    infer_clip_config,
    split_towers,
)
from tests.helpers.encoders.open_clip_files import (
    PUBLISHED,
    openai_names,
    published_shapes,
    torch_clip,
)
from tests.helpers.torchscript import module_of
from tests.helpers.twins import nhwc, relative_error

TOLERANCE = 1e-5  # relative, of float32
CONSTANTS = {name: torch.tensor(n) for name, n in [("input_resolution", 32), ("vocab_size", 9)]}


def write_openai(folder, state):
    """OpenAI's, a TorchScript archive; the name says which activation tiny sizes have."""
    path = folder / "ViT-tiny-quickgelu.pt"
    torch.jit.save(torch.jit.script(module_of({**state, **CONSTANTS})), path)
    return path


def write_trainer(folder, state):
    """OpenCLIP's own checkpoint while training, on several devices."""
    wrapped = {f"module.{key}": value for key, value in state.items()}
    torch.save({"epoch": 3, "name": "x", "state_dict": wrapped}, folder / "epoch_3.pt")
    return folder / "epoch_3.pt"


def write_folder(folder, state):
    """A folder of OpenCLIP's, whose config says how many heads, and that it has quick GELU."""
    save_file(state, folder / "open_clip_model.safetensors")
    vision, text = {"head_width": 80}, {"heads": 2}
    config = {"quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config}))
    return folder


# name: (arguments of torch_clip, prefix of the text tower, how it is written, words of the note)
LAYOUTS = {
    "openai": (("quick_gelu",), "", write_openai, "quick_gelu (by the file's name)"),
    "openclip": (("gelu",), "text.", write_trainer, "gelu (OpenAI has published no CLIP of this"),
    "folder": (("quick_gelu", 160, 2), "", write_folder, "quick_gelu (as open_clip_config.json"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_as_transformers_with_the_same_weights(layout, tmp_path):
    arguments, prefix, write, note = LAYOUTS[layout]
    theirs = torch_clip(tmp_path, *arguments)
    clip = load_clip(write(tmp_path, openai_names(theirs, prefix)))
    assert clip.note.startswith(note)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    texts = ["a photo of a man", "castle"]
    ids = clip.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        out = theirs(input_ids=ids, pixel_values=images)
        text_states = theirs.text_model(ids).last_hidden_state
        image_states = theirs.vision_model(images).last_hidden_state
    text = jax.jit(lambda x: clip.text_model(x))(ids.numpy())
    image = jax.jit(lambda x: clip.vision_model(x))(nhwc(images))
    for found, wanted in (
        (text.last_hidden_state, text_states),
        (image.last_hidden_state, image_states),
        (_unit(text.text_embeds), out.text_embeds),
        (_unit(image.image_embeds), out.image_embeds),
    ):
        assert relative_error(found, wanted) < TOLERANCE


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def hollow(shapes):
    """A source of these shapes without memory."""
    zero = np.zeros((), np.float32)
    return DictSource({key: np.broadcast_to(zero, shape) for key, shape in shapes.items()}, "f.pt")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes(name):
    sizes, millions, heads = PUBLISHED[name]
    text, vision, projection, patch, size = sizes
    shapes = published_shapes(*sizes)
    assert round(sum(math.prod(shape) for shape in shapes.values()) / 1e6, 2) == millions
    source = hollow(shapes)
    act, _ = choose_activation(source, "model.pt", text[0])
    assert act == ("quick_gelu" if name.startswith(("B", "L")) else "gelu")
    config = infer_clip_config(split_towers(source), act)
    assert config["projection_dim"] == projection
    for tower, wanted, count in zip(("text", "vision"), (text, vision), heads, strict=True):
        found = config[f"{tower}_config"]
        keys = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
        assert tuple(found[key] for key in keys) == (*wanted, count)
        assert found["hidden_act"] == act and found["layer_norm_eps"] == 1e-5
    assert (found["patch_size"], found["image_size"]) == (patch, size)


@pytest.mark.parametrize(
    ("file_name", "width", "stated", "noted", "act"),
    [
        ("ViT-L-14-336px.pt", 768, None, "", "quick_gelu"),
        ("open_clip_pytorch_model.bin", 768, None, "", "gelu"),
        ("ViT-B-32-laion2b_s34b_b79k.pt", 512, None, "", "gelu"),
        ("vit_b_32-quickgelu-laion400m_e32.pt", 512, None, "", "quick_gelu"),
        ("open_clip_pytorch_model.bin", 512, {"quick_gelu": True}, "", "quick_gelu"),
        ("ViT-B-32.pt", 512, {"embed_dim": 512}, "", "gelu"),
        ("model.safetensors", 1024, None, "", "gelu"),
        ("model.safetensors", 512, None, "gelu", "gelu"),
    ],
)
def test_which_activation(file_name, width, stated, noted, act):
    source = hollow({})
    source.metadata = {"hidden_act": noted} if noted else {}
    found, why = choose_activation(source, file_name, width, stated)
    assert found == act and why


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return openai_names(torch_clip(tmp_path_factory.mktemp("clip")))


def test_what_is_no_such_clip_is_refused(state, tmp_path):
    path = tmp_path / "a.safetensors"

    def refused(tensors, error, match):
        save_file(tensors, path)
        with pytest.raises(error, match=match):
            load_clip(path)

    refused({"a": torch.zeros(2)}, KeyMismatch, "not a whole CLIP in OpenAI's or OpenCLIP's")
    text = {key: value for key, value in state.items() if not key.startswith("visual.")}
    refused(text, KeyMismatch, r"visual.transformer.resblocks.\*")
    refused({**state, "visual.more": torch.zeros(2)}, KeyMismatch, r"image tower.*(?s:.)*more")
    refused({**state, "more": torch.zeros(2)}, KeyMismatch, r"text tower.*(?s:.)*more")
    short = {key: value for key, value in state.items() if key != "visual.ln_post.bias"}
    refused(short, KeyMismatch, "post_layernorm.bias")
    refused({**state, "visual.positional_embedding": torch.zeros(4, 192)}, BadConfig, "a square")
    refused({k: v for k, v in state.items() if k != "text_projection"}, KeyMismatch, "text_proj")
    refused(state, MissingFile, "clip-vit-base-patch32 is every CLIP's")  # no tokenizer
    (tmp_path / CONFIG).write_text('{"model_cfg": {"vision_cfg": {"head_width": 80}}}')
    refused(state, BadConfig, "image tower is 192 wide, not a multiple of its heads' 80")
    (tmp_path / CONFIG).write_text("{}")
    refused(state, BadConfig, "model_cfg")
    with pytest.raises(MissingFile, match="OpenAI's or OpenCLIP's file"):
        load_clip(tmp_path / "none.pt")


def test_clip_t_by_a_file(state, tmp_path):
    model = torch_clip(tmp_path)
    torch.save(openai_names(model), tmp_path / "open_clip_pytorch_model.bin")
    by_folder, by_file = (
        ClipScore(p) for p in (tmp_path, tmp_path / "open_clip_pytorch_model.bin")
    )
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 50, 3), np.uint8)
    assert by_folder.note == by_file.note and by_file.note.startswith("gelu")
    assert by_folder.score(image, ["a man"]) == by_file.score(image, ["a man"])
