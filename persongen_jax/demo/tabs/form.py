"""The form of a request: its inputs, and how a Request is read from their values."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.records.schema import MAX_REFERENCES, PARTS
from persongen_jax.demo.painting import Person, Request
from persongen_jax.demo.tabs.fields import Upload, photograph
from persongen_jax.diffusion.samplers import SAMPLERS
from persongen_jax.diffusion.strengths import Strength
from persongen_jax.pipeline.loading import METHOD_PREFIX

MODELS_OWN = "the model's own"
STRENGTHS = ["what", "strength", "from", "to"]
MOST_IMAGES, MOST_STEPS, MOST_SIDE = 4, 100, 2048
FACES = [str(number) for number in range(1, 10)]  # that a client may choose without looking
CONSENT = (
    "Photographs of people need their consent. They stay on this machine and are deleted when you "
    "close the page."
)


def settings(steps: int, guidance: float, strengths: bool = True) -> dict[str, Any]:
    """How images are sampled: the components by name, inside the current block.

    Args:
        steps, guidance: that are set at first.
        strengths: whether they can be set, which are each model's own.
    """
    import gradio as gr

    negative = gr.Textbox("", label="Negative prompt", placeholder="what to steer away from")
    table = {}
    if strengths:
        table["strengths"] = gr.Dataframe(
            headers=STRENGTHS,
            datatype=["str", "number", "number", "number"],
            column_count=4,
            label="Strengths, and during which part of the steps (0 to 1) they act",
            interactive=True,
        )
    with gr.Row():
        seed = gr.Number(42, label="Seed", precision=0, min_width=120)
        random_seed = gr.Checkbox(False, label="Another seed each time", min_width=120)
    with gr.Row():
        number = gr.Slider(1, MOST_STEPS, steps, step=1, label="Steps", min_width=160)
        scale = gr.Slider(1, 15, guidance, step=0.1, label="Guidance", min_width=160)
    with gr.Row():
        sampler = gr.Dropdown([MODELS_OWN, *SAMPLERS], value=MODELS_OWN, label="Sampler")
        width = gr.Number(0, label="Width (0: the model's)", precision=0, min_width=120)
        height = gr.Number(0, label="Height (0: the model's)", precision=0, min_width=120)
    images = gr.Slider(1, MOST_IMAGES, 1, step=1, label="Images")
    return {
        "negative": negative,
        **table,
        "seed": seed,
        "random_seed": random_seed,
        "steps": number,
        "guidance": scale,
        "sampler": sampler,
        "width": width,
        "height": height,
        "images": images,
    }


def photographs(count: int = MAX_REFERENCES, whose: str = "", prefix: str = "") -> dict[str, Any]:
    """photograph_1 to _n and face_1 to _n, which face of each: inside the current block.

    Args:
        prefix: of the names.
    """
    import gradio as gr

    numbers, found = range(1, count + 1), {}
    with gr.Row():
        for n in numbers:
            name = f"{prefix}photograph_{n}"
            found[name] = photograph(f"Photograph {n}{whose}", min_width=110)
    with gr.Row():
        for n in numbers:
            label = f"Face of photograph {n}{whose}"
            found[f"{prefix}face_{n}"] = gr.Radio(FACES, value="1", label=label, visible=False)
    return found


def uploads(values: dict[str, Any]) -> list[Upload]:
    """The uploaded photographs among the values of a form."""
    return [value for value in values.values() if isinstance(value, Upload)]


def person(values: dict[str, Any], prefix: str = "") -> Person | None:
    """One person from the values of ``photographs``; None without any."""
    pairs = [
        (upload.image, int(values.get(f"{prefix}face_{n}") or 1) - 1)
        for n in range(1, MAX_REFERENCES + 1)
        if (upload := values.get(f"{prefix}photograph_{n}")) is not None
    ]
    if not pairs:
        return None
    images, numbers = zip(*pairs, strict=True)
    return Person(images, numbers)


def read_settings(values: dict[str, Any], usual: dict[str, float] | None = None) -> dict[str, Any]:
    """Arguments of Request from the values of ``settings``.

    Args:
        usual: the model's own strengths; what equals them is not set.

    Raises:
        ValueError: numbers that are none, or out of range.
    """
    for name in ("width", "height"):
        if not 0 <= (values[name] or 0) <= MOST_SIDE:
            raise ValueError(f"{name} {values[name]}: give up to {MOST_SIDE} pixels, or 0")
    again, sampler = values["random_seed"], values["sampler"]
    return {
        "negative": (values["negative"] or "").strip(),
        "scales": read_strengths(values.get("strengths"), usual or {}),
        "seed": random.randrange(2**31) if again else int(values["seed"] or 0),
        "steps": int(values["steps"]),
        "guidance": float(values["guidance"]),
        "sampler": None if sampler in (None, MODELS_OWN) else sampler,
        "width": int(values["width"]) if values["width"] else None,
        "height": int(values["height"]) if values["height"] else None,
        "images": int(values["images"]),
    }


def read_strengths(table: Any, usual: dict[str, float]) -> dict[str, Strength]:
    """Strengths by name from the rows [name, number, start, end]; rows of one name are ranges.

    Args:
        table: a pandas table, or a list of rows.

    Raises:
        ValueError: a row without a name, or without three numbers.
    """
    rows = table.to_numpy().tolist() if hasattr(table, "to_numpy") else list(table or ())
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        name, *numbers = ("" if value is None or value != value else value for value in row[:4])
        name = str(name).strip()
        if not name:
            if str(numbers[0]).strip():
                raise ValueError("strengths: a row has no name; say what it is the strength of")
            continue
        try:
            number, start, end = map(float, numbers)
        except (TypeError, ValueError) as error:
            raise ValueError(f"strengths: the row of {name} needs three numbers") from error
        found.setdefault(name, []).append((start, end, number))
    return {
        name: ranges if ranges != [(0.0, 1.0, ranges[0][2])] else ranges[0][2]
        for name, ranges in found.items()
        if ranges != [(0.0, 1.0, usual.get(name))]
    }


def rows_of(scales: dict[str, Strength]) -> list[list]:
    """The table's rows from strengths by name, as ``read_strengths`` reads them."""
    rows: list[list] = []
    for name, value in scales.items():
        ranges = [(0, 1, value)] if isinstance(value, (int, float)) else value
        rows += [[name, number, start, end] for start, end, number in ranges]
    return rows


def usual_strengths(pipe: Any) -> dict[str, float]:
    """By name, what acts with which strength if nothing is said."""
    if pipe.method is None:
        return {}
    lora = any(name.startswith(METHOD_PREFIX) for name in pipe.adapters)
    schedules = pipe.conditioner.schedules({}, lora=lora, acts=True, num_steps=1)
    return {name: round(float(values[0]), 4) for name, values in schedules.items()}


def request(values: dict[str, Any], people: Sequence[Person | None], **others: Any) -> Request:
    """A Request from the values of a form: its prompt and parts, and ``others``.

    Raises:
        ValueError: no prompt.
    """
    prompt = (values["prompt"] or "").strip()
    if not prompt:
        raise ValueError("the prompt is empty: say what to generate")
    parts = {name: values.get(name) or "" for name in PARTS}
    known = tuple(each for each in people if each is not None)
    return Request(prompt, parts=parts, people=known, **others)


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
