"""Prompts and seeds in PNGs: ComfyUI's graphs, and what persongen_jax.generate writes."""

import json

import numpy as np
import pytest

from persongen_jax.evaluation.folders.embedded import graph_of, is_ours, notes_of, read_graph
from persongen_jax.evaluation.folders.layouts import read_images
from persongen_jax.pipeline.saving import ImageFolder
from tests.evaluation.folders.drawn import draw

TEXT = "a man img in the snow"
USUAL = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 7, "positive": ["6", 0], "negative": ["5", 0], "model": ["4", 0]},
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl.safetensors"}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": TEXT, "clip": ["4", 1]}},
}
CUSTOM = {
    "1": {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {"noise": ["2", 0], "guider": ["3", 0], "sigmas": ["9", 0]},
    },
    "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}},
    "3": {"class_type": "CFGGuider", "inputs": {"positive": ["4", 0], "negative": ["8", 0]}},
    "4": {"class_type": "ControlNetApply", "inputs": {"conditioning": ["5", 0], "image": ["6", 0]}},
    "5": {"class_type": "CLIPTextEncodeSDXL", "inputs": {"text_g": ["7", 0], "text_l": ["7", 0]}},
    "7": {"class_type": "PrimitiveString", "inputs": {"value": TEXT}},
}
TWO = {
    **USUAL,
    "10": {"class_type": "KSampler", "inputs": {"seed": 8, "positive": ["11", 0]}},
    "11": {"class_type": "CLIPTextEncode", "inputs": {"text": "a detailed face"}},
}


@pytest.mark.parametrize(
    ("graph", "mapping", "found"),
    [
        (USUAL, {}, (TEXT, "7")),
        (CUSTOM, {}, (TEXT, "7")),
        (TWO, {}, ("", "")),
        (TWO, {"prompt": "6.text", "seed": "3.seed"}, (TEXT, "7")),
        (TWO, {"prompt": "99.text"}, ("", "")),
        (
            {"1": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["1", 0]}}},
            {},
            ("", "1"),
        ),
    ],
)
def test_prompt_and_seed_of_a_graph(graph, mapping, found):
    assert graph_of({"prompt": json.dumps(graph)}) == graph
    assert read_graph(graph, mapping) == found


def test_what_is_no_graph():
    for text in ("a man {smiling}", "{a man}", "{}", "[]", '{"1": 2}', '{"1": {"a": 1}}'):
        assert graph_of({"prompt": text}) == {}


def test_a_folder_of_comfyui_s(tmp_path):
    draw(tmp_path / "ann" / "ComfyUI_00001_.png", notes={"prompt": json.dumps(USUAL)})
    draw(tmp_path / "ann" / "ComfyUI_00002_.png", notes={"prompt": json.dumps(TWO)})
    found = read_images("mine", tmp_path)
    assert found.layout == "ComfyUI's files"
    assert [(e.person, e.text, e.seed) for e in found.entries] == [
        ("ann", TEXT, "7"),
        ("ann", "", ""),
    ]
    assert found.notes == [
        "the prompts of 1 of 2 images are not known (ann/ComfyUI_00002_.png): give where the graph "
        "has it in comfyui.json"
    ]
    (tmp_path / "comfyui.json").write_text('{"prompt": "6.text", "seed": "3.seed"}')
    found = read_images("mine", tmp_path)
    assert [entry.text for entry in found.entries] == [TEXT] * 2 and not found.notes
    (tmp_path / "comfyui.json").write_text('{"prompt": 6}')
    with pytest.raises(ValueError, match="comfyui.json: .*NODE.INPUT.* is needed"):
        read_images("mine", tmp_path)


def test_what_generate_writes(tmp_path):
    photo = draw(tmp_path / "ann.png")
    settings = {"method_weights": "photomaker", "reference": [f"{photo}@mask.png"]}
    folder, image = ImageFolder(tmp_path / "out" / "ann"), np.zeros((8, 8, 3), np.uint8)
    for index in range(2):
        notes = {"prompt": TEXT, "negative_prompt": "", "background": "a white field"}
        notes |= {"seed": 42, "index": 2 + index, "number": index, "settings": settings}
        folder.save(image, notes)
    settings = {"method_weights": None, "reference": []}
    folder.save(image, {"prompt": TEXT, "seed": 1, "number": 0, "settings": settings})
    found = read_images("mine", tmp_path / "out")
    assert found.layout == "persongen_jax.generate's files"
    assert [(entry.text, entry.seed) for entry in found.entries] == [
        ("a man in the snow. a white field", "42"),
        ("a man in the snow. a white field", "42 #2"),
        (TEXT, "1"),  # nothing read the trigger word
    ]
    assert found.references == {"ann": [str(photo)]}


def test_files_without_notes(tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG no")
    assert notes_of(tmp_path / "damaged.png") == notes_of(tmp_path / "other.jpg") == {}
    for settings in ("steps 20", "[1]", '{"steps": 20}'):  # another program's
        assert not is_ours({"prompt": TEXT, "seed": "1", "number": "0", "settings": settings})
