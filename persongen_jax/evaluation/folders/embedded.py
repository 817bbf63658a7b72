"""Prompts and seeds that PNG files hold: ComfyUI's, and those of persongen_jax.generate.

ComfyUI writes the graph that made an image into its text chunk "prompt": nodes by their number,
{"class_type", "inputs"}, an input being a value or [node, output]. The prompt is the text at the
end of the sampler's "positive" input, the seed the sampler's. Where a graph has several samplers or
texts, ``comfyui.json`` in the folder says which inputs count:
{"prompt": "6.text", "seed": "3.seed"}.
"""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipeline.prompts import has_trigger, join_parts, split_at_trigger
from data_pipeline.text_files import read_json
from persongen_jax.evaluation.folders.entries import LayoutError
from persongen_jax.evaluation.prompts import PARTS, TRIGGER

MAPPING = "comfyui.json"
# Inputs that lead from a sampler to its prompt, and those that hold the text: the first that is
# there.
TO_PROMPT = ("positive", "guider", "conditioning", "conditioning_1", "conditioning_to")
TEXTS = ("text", "text_g", "prompt", "string", "value", "text_l")
SEEDS = ("seed", "noise_seed")
DEEP = 50  # links that are followed at most


def notes_of(path: Path) -> dict[str, str]:
    """The text chunks of a PNG; {} of other files, and of those that cannot be read."""
    if path.suffix.lower() != ".png":
        return {}
    try:
        with Image.open(path) as image:
            return {str(key): text for key, text in image.info.items() if isinstance(text, str)}
    except Exception:  # whoever decodes it says what is wrong
        return {}


# ---- persongen_jax.generate --------------------------------------------------------------------


def is_ours(notes: dict[str, str]) -> bool:
    """Whether persongen_jax.generate wrote it."""
    return {"prompt", "seed", "number"} <= notes.keys() and bool(_settings(notes))


def read_ours(notes: dict[str, str]) -> tuple[str, str, list[str]]:
    """(prompt, seed, paths of the references) of a file of persongen_jax.generate.

    The prompt is joined with its background and body, as metrics read it, and is without the
    trigger word where a method read it. The seed is "42" of a prompt's first image, then "42 #2".
    """
    settings, general = _settings(notes), notes["prompt"]
    if settings.get("method_weights") and has_trigger(general, TRIGGER):
        general = "".join(split_at_trigger(general, TRIGGER))
    text = join_parts(general, *(notes.get(part, "") for part in PARTS[1:]))
    references = [item.partition("@")[0] for item in settings.get("reference", [])]
    number = int(notes["number"])
    return text, f"{notes['seed']} #{number + 1}" if number else notes["seed"], references


def _settings(notes) -> dict:
    """{} where they are those of another program."""
    try:
        found = json.loads(notes.get("settings", ""))
    except ValueError:
        return {}
    return found if isinstance(found, dict) and "reference" in found else {}


# ---- ComfyUI -----------------------------------------------------------------------------------


def graph_of(notes: dict[str, str]) -> dict[str, dict]:
    """ComfyUI's graph; {} if there is none."""
    text = notes.get("prompt", "")
    if not text.lstrip().startswith("{"):
        return {}
    try:
        graph = json.loads(text)
    except ValueError:
        return {}
    nodes = isinstance(graph, dict) and all(isinstance(node, dict) for node in graph.values())
    return graph if nodes and any("class_type" in node for node in graph.values()) else {}


def read_mapping(folder: Path) -> dict[str, str]:
    """``comfyui.json``; {} if there is none.

    Raises:
        LayoutError: other keys than prompt and seed, or values that are not NODE.INPUT.
    """
    path = folder / MAPPING
    if not path.is_file():
        return {}
    found = read_json(path)
    known = isinstance(found, dict) and set(found) <= {"prompt", "seed"}
    if not known or not all(isinstance(v, str) and "." in v for v in found.values()):
        raise LayoutError(f'{path}: {{"prompt": "NODE.INPUT", "seed": "NODE.INPUT"}} is needed')
    return found


def read_graph(graph: dict[str, dict], mapping: dict[str, str]) -> tuple[str, str]:
    """(prompt, seed) of a graph; "" for what it does not say once.

    Args:
        mapping: as read_mapping's.
    """
    samplers = [node for node in graph.values() if _is_sampler(node)]
    texts = {_text_of(graph, node) for node in samplers} - {""}
    seeds = {_seed_of(graph, node) for node in samplers} - {""}
    found = [next(iter(values)) if len(values) == 1 else "" for values in (texts, seeds)]
    for i, key in enumerate(("prompt", "seed")):
        if key in mapping:
            number, _, name = mapping[key].rpartition(".")
            found[i] = _value(graph, graph.get(number, {}).get("inputs", {}).get(name))
    return found[0], found[1]


def _is_sampler(node: dict) -> bool:
    inputs = node.get("inputs", {})
    whole = "positive" in inputs and any(key in inputs for key in SEEDS)
    return whole or {"guider", "noise"} <= inputs.keys()


def _text_of(graph, node) -> str:
    """Follows a sampler's prompt to its text."""
    for _ in range(DEEP):
        inputs = node.get("inputs", {})
        text = next((_value(graph, inputs[key]) for key in TEXTS if key in inputs), "")
        if text:
            return text
        link = next((inputs[key] for key in TO_PROMPT if _is_link(inputs.get(key))), None)
        if link is None:
            return ""
        node = graph.get(str(link[0]), {})
    return ""


def _seed_of(graph, node) -> str:
    inputs = node.get("inputs", {})
    if _is_link(inputs.get("noise")):
        inputs = graph.get(str(inputs["noise"][0]), {}).get("inputs", {})
    return next((_value(graph, inputs[key]) for key in SEEDS if key in inputs), "")


def _value(graph, value: Any) -> str:
    """A text or number as a text; through links to nodes that hold nothing else."""
    for _ in range(DEEP):
        if not _is_link(value):
            return "" if value is None or isinstance(value, (list, dict)) else str(value)
        inputs = graph.get(str(value[0]), {}).get("inputs", {})
        value = next((inputs[key] for key in (*TEXTS, *SEEDS) if key in inputs), None)
    return ""


def _is_link(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and not isinstance(value[0], list)
