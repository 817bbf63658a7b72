"""The tab that puts two people into one image, each where somebody draws."""

import numpy as np

from persongen_jax.demo.site import IN_LINE, PRIVATE, Site
from persongen_jax.demo.tabs import canvas as drawing
from persongen_jax.demo.tabs import form
from persongen_jax.demo.tabs.faces import gallery, keep, show_faces
from persongen_jax.demo.tabs.generate import Outputs, cancels, guarded, show, tell

COLOURS = {"#d62728": (214, 39, 40), "#1f77b4": (31, 119, 180)}
SIDE = 512  # pixels of the canvas
EACH = 2  # photographs
PROMPT = "a photo of a man and a woman in front of a castle"


def build(site: Site) -> None:
    """Fills the current tab."""
    import gradio as gr

    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            model = gr.Dropdown(site.names, value=site.names[0], label="Model")
            about = gr.Markdown()
            gr.Markdown(
                "For methods that read people by an attention branch: id_branch, ip_lora, dual, "
                "cascade, IP-Adapter, InstantID."
            )
            first = form.photographs(EACH, " of person 1, red", "first_")
            first_faces = gallery()
            second = form.photographs(EACH, " of person 2, blue", "second_")
            second_faces = gallery()
            gr.Markdown(form.CONSENT)
            gr.Markdown("Paint where each may be, red for person 1 and blue for person 2:")
            canvas = drawing.build(
                list(COLOURS), SIDE, "Red: person 1, blue: person 2", name="canvas"
            )
            halves = gr.Checkbox(False, label="Person 1 in the left half, person 2 in the right")
            prompt = gr.Textbox(label="Prompt", value=PROMPT, lines=2)
            with gr.Accordion("Settings", open=False):
                chosen = form.settings(site.steps, site.guidance)
            with gr.Row():
                go = gr.Button("Generate both", variant="primary", elem_id="both")
                stop = gr.Button("Cancel")
        with gr.Column(scale=2, min_width=320):
            outputs = Outputs()

    @guarded
    def generate(visitor, values):
        keep(site, visitor, values)
        people = [form.person(values, prefix) for prefix in ("first_", "second_")]
        for number, each in enumerate(people, 1):
            if each is None:
                raise ValueError(f"person {number} has no photograph: give one to {EACH} of each")
        if values["halves"]:
            left = np.zeros((SIDE, SIDE), bool)
            left[:, : SIDE // 2] = True
            masks = [left, ~left]
        else:
            masks = form.masks_of(values["drawing"], list(COLOURS.values()))

        def make(usual):
            read = form.read_settings(values, usual)
            return form.request(values, people, regions=tuple(masks), **read)

        yield from show(site, values["model"], make, visitor)

    tell(site, model, [about, chosen["strengths"]], several=True)
    show_faces(site, model, first, first_faces)
    show_faces(site, model, second, second_faces)
    inputs = {"model": model, "prompt": prompt, "drawing": canvas, "halves": halves}
    inputs |= {**first, **second, **chosen}
    ran = {"inputs_kwargs": inputs, "outputs": outputs.all, **IN_LINE}
    started = go.click(generate, **ran, **PRIVATE)
    cancels(site, stop, [started], [outputs.preview, outputs.said])
