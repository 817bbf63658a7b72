"""The form of a request: its inputs, and how a Request is read from their values."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from data_pipeline.records.schema import MAX_REFERENCES, PARTS
from persongen_jax.demo.fields import Upload, photograph
from persongen_jax.demo.painting import Person, Request
from persongen_jax.diffusion.samplers import SAMPLERS
from persongen_jax.diffusion.strengths import Strength
from persongen_jax.pipeline.loading import METHOD_PREFIX

MODELS_OWN = "the model's own"
STRENGTHS = ["what", "strength", "from", "to"]
MOST_IMAGES, MOST_STEPS, MOST_SIDE = 4, 100, 2048
CONSENT = (
    "Photographs of people need their consent. They stay on this machine and are deleted when you "
    "close the page."
)


@dataclass
class Settings:
    """How images are sampled: the components, in the order of their values."""

    negative: gr.Textbox
    strengths: gr.Dataframe
    seed: gr.Number
    random_seed: gr.Checkbox
    steps: gr.Slider
    guidance: gr.Slider
    sampler: gr.Dropdown
    width: gr.Number
    height: gr.Number
    images: gr.Slider

    @property
    def all(self) -> list:
        return list(vars(self).values())


def settings(steps: int) -> Settings:
    """The components, inside the current block."""
    negative = gr.Textbox(label="Negative prompt", placeholder="what to steer away from")
    strengths = gr.Dataframe(
        headers=STRENGTHS,
        datatype=["str", "number", "number", "number"],
        column_count=4,
        label="Strengths, and during which part of the steps (0 to 1) they act",
        interactive=True,
        static_columns=[0],
    )
    with gr.Row():
        seed = gr.Number(42, label="Seed", precision=0, min_width=120)
        random_seed = gr.Checkbox(False, label="Another seed each time", min_width=120)
    with gr.Row():
        number = gr.Slider(1, MOST_STEPS, steps, step=1, label="Steps", min_width=160)
        guidance = gr.Slider(1, 15, 5, step=0.1, label="Guidance", min_width=160)
    with gr.Row():
        sampler = gr.Dropdown([MODELS_OWN, *SAMPLERS], value=MODELS_OWN, label="Sampler")
        width = gr.Number(0, label="Width (0: the model's)", precision=0, min_width=120)
        height = gr.Number(0, label="Height (0: the model's)", precision=0, min_width=120)
    images = gr.Slider(1, MOST_IMAGES, 1, step=1, label="Images")
    return Settings(
        negative, strengths, seed, random_seed, number, guidance, sampler, width, height, images
    )


def photographs(count: int = MAX_REFERENCES, whose: str = "") -> tuple[list, list]:
    """(photographs, which face of each): components, inside the current block."""
    with gr.Row():
        photos = [photograph(f"Photograph {n}{whose}", min_width=140) for n in range(1, count + 1)]
    with gr.Row():
        faces = [
            gr.Radio(["1"], value="1", label=f"Face of photograph {n}{whose}", visible=False)
            for n in range(1, count + 1)
        ]
    return photos, faces


def person(uploads: Sequence[Upload | None], faces: Sequence[str | None]) -> Person | None:
    """One person from the values of ``photographs``; None without any."""
    pairs = [(u.image, int(f or 1) - 1) for u, f in zip(uploads, faces, strict=True) if u]
    if not pairs:
        return None
    images, numbers = zip(*pairs, strict=True)
    return Person(images, numbers)


def read_settings(values: Sequence[Any], usual: dict[str, float]) -> dict[str, Any]:
    """Arguments of Request from the values of ``Settings.all``.

    Args:
        usual: the model's own strengths; what equals them is not set.

    Raises:
        ValueError: numbers that are none, or out of range.
    """
    negative, table, seed, again, steps, guidance, sampler, width, height, images = values
    for name, side in (("width", width), ("height", height)):
        if not 0 <= (side or 0) <= MOST_SIDE:
            raise ValueError(f"{name} {side}: give up to {MOST_SIDE} pixels, or 0")
    return {
        "negative": (negative or "").strip(),
        "scales": read_strengths(table, usual),
        "seed": random.randrange(2**31) if again else int(seed or 0),
        "steps": int(steps),
        "guidance": float(guidance),
        "sampler": None if sampler in (None, MODELS_OWN) else sampler,
        "width": int(width) if width else None,
        "height": int(height) if height else None,
        "images": int(images),
    }


def read_strengths(table: Any, usual: dict[str, float]) -> dict[str, Strength]:
    """Strengths by name from the rows [name, number, start, end]; rows of one name are ranges.

    Args:
        table: a pandas table, or a list of rows.
    """
    rows = table.to_numpy().tolist() if hasattr(table, "to_numpy") else list(table or ())
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        name = str(row[0] or "").strip()
        if not name:
            continue
        try:
            number, start, end = (float(value) for value in row[1:4])
        except (TypeError, ValueError) as error:
            raise ValueError(f"strengths: the row of {name} needs three numbers") from error
        found.setdefault(name, []).append((start, end, number))
    return {
        name: ranges if ranges != [(0.0, 1.0, ranges[0][2])] else ranges[0][2]
        for name, ranges in found.items()
        if ranges != [(0.0, 1.0, usual.get(name))]
    }


def usual_strengths(pipe: Any) -> dict[str, float]:
    """By name, what acts with which strength if nothing is said."""
    if pipe.method is None:
        return {}
    lora = any(name.startswith(METHOD_PREFIX) for name in pipe.adapters)
    schedules = pipe.conditioner.schedules({}, lora=lora, acts=True, num_steps=1)
    return {name: round(float(values[0]), 4) for name, values in schedules.items()}


def request(
    prompt: str, parts: Sequence[str | None], people: Sequence[Person | None], **others: Any
) -> Request:
    """A Request. ``parts``: texts in the order of PARTS.

    Raises:
        ValueError: no prompt.
    """
    if not (prompt or "").strip():
        raise ValueError("the prompt is empty: say what to generate")
    texts = {name: text or "" for name, text in zip(PARTS, parts, strict=True)}
    known = tuple(each for each in people if each is not None)
    return Request(prompt.strip(), parts=texts, people=known, **others)


def masks_of(drawing: dict | None, colours: Sequence[tuple[int, int, int]]) -> list[np.ndarray]:
    """[h, w] bool for each colour: where the drawing has it on any of its layers.

    Args:
        drawing: an ImageEditor's value with uint8 arrays [h, w, 4].

    Raises:
        ValueError: one of them is nowhere.
    """
    layers = (drawing or {}).get("layers") or []
    found = []
    for number, colour in enumerate(colours, 1):
        mask = np.zeros(layers[0].shape[:2] if layers else (1, 1), bool)
        for layer in layers:
            near = np.abs(layer[..., :3].astype(int) - colour).sum(-1) < 96
            mask |= near & (layer[..., 3] > 127)
        if not mask.any():
            raise ValueError(f"draw where person {number} may be, with the brush's colour for them")
        found.append(mask)
    return found
