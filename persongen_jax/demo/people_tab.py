"""The tab that puts two people into one image, each where somebody draws."""

from typing import Any

import gradio as gr
import numpy as np

from persongen_jax.demo import form
from persongen_jax.demo.generate_tab import Outputs, guarded, keep, show
from persongen_jax.demo.site import ONE_AT_A_TIME, Site

COLOURS = {"#d62728": (214, 39, 40), "#1f77b4": (31, 119, 180)}
SIDE = 512  # pixels of the canvas
EACH = 2  # photographs
PROMPT = "a photo of a man and a woman in front of a castle"


def build(site: Site) -> None:
    """Fills the current tab."""
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            model = gr.Dropdown(site.names, value=site.names[0], label="Model")
            gr.Markdown(
                "For methods that read people by an attention branch: id_branch, ip_lora, dual, "
                "cascade, IP-Adapter, InstantID."
            )
            first = form.photographs(EACH, " of person 1, red")
            second = form.photographs(EACH, " of person 2, blue")
            gr.Markdown(form.CONSENT)
            white = np.full((SIDE, SIDE, 3), 255, np.uint8)
            brush = gr.Brush(colors=list(COLOURS), default_size=60, color_mode="fixed")
            canvas = gr.ImageEditor(
                value={"background": white, "layers": [], "composite": white},
                label="Who is where: paint red for person 1, blue for person 2",
                type="numpy",
                image_mode="RGBA",
                brush=brush,
                sources=[],
                transforms=[],
                canvas_size=(SIDE, SIDE),
                elem_id="canvas",
            )
            halves = gr.Checkbox(False, label="Person 1 in the left half, person 2 in the right")
            prompt = gr.Textbox(label="Prompt", value=PROMPT, lines=2)
            with gr.Accordion("Settings", open=False):
                chosen = form.settings(site.steps)
            with gr.Row():
                go = gr.Button("Generate both", variant="primary", elem_id="both")
                stop = gr.Button("Cancel")
        with gr.Column(scale=2, min_width=320):
            outputs = Outputs()

    own = [*first[0], *first[1], *second[0], *second[1]]

    @guarded
    def generate(visitor, name, prompt, drawing, halved, *values):
        entered, values = values[: len(own)], values[len(own) :]
        one, two = entered[: 2 * EACH], entered[2 * EACH :]
        keep(site, visitor, *one[:EACH], *two[:EACH])
        people = [form.person(each[:EACH], each[EACH:]) for each in (one, two)]
        for number, each in enumerate(people, 1):
            if each is None:
                raise ValueError(f"person {number} has no photograph: give one to {EACH} of each")
        if halved:
            left = np.zeros((SIDE, SIDE), bool)
            left[:, : SIDE // 2] = True
            masks = [left, ~left]
        else:
            masks = form.masks_of(drawing, list(COLOURS.values()))
        usual = form.usual_strengths(site.models.open(site.models.named(name)))
        read = form.read_settings(values, usual)
        asked = form.request(prompt, ("", ""), people, regions=tuple(masks), **read)
        yield from show(site, name, asked, visitor)

    private: Any = {"api_visibility": "private"}
    inputs = [model, prompt, canvas, halves, *own, *chosen.all]
    go.click(generate, inputs, outputs.all, api_name="both", **ONE_AT_A_TIME, **private)
    stop.click(site.sessions.end, queue=False, **private)
