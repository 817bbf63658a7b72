"""The tab that generates one person from photographs and a prompt."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_pipeline.records.schema import MAX_REFERENCES, PARTS
from persongen_jax.demo.painting import Request
from persongen_jax.demo.photographs import find_faces, with_boxes
from persongen_jax.demo.sessions import sentence, stream
from persongen_jax.demo.site import ONE_AT_A_TIME, PRIVATE, Site, caption
from persongen_jax.demo.tabs import form
from persongen_jax.demo.tabs.fields import escaped, photograph

PROMPT = "a photo of a man in a space suit, a beach with palm trees behind him"
FAULTS = (ValueError, OSError)


class Outputs:
    """What a request fills: preview, what is said, images, their files and settings."""

    def __init__(self):
        import gradio as gr

        self.preview = gr.Image(label="Preview", interactive=False, height=220, buttons=[])
        self.said = gr.Markdown(elem_classes="said")
        self.gallery = gr.Gallery(label="Images", columns=2, height="auto", object_fit="contain")
        self.files = gr.File(label="Files, marked as generated", file_count="multiple")
        with gr.Accordion("Settings of the images, as in their files", open=False):
            self.notes = gr.JSON(show_label=False)
        self.all = [self.preview, self.said, self.gallery, self.files, self.notes]


def show(site: Site, name: str, asked: Request, visitor: Any) -> Iterator[tuple[Any, ...]]:
    """Values for Outputs.all while a request is computed, and at its end."""
    import gradio as gr

    end = site.sessions.begin(visitor)

    def work(progress, on_preview):
        return site.paint(name, asked, progress=progress, on_preview=on_preview)

    same = gr.skip()
    yield None, "loading the model, or compiling it for this size", same, same, same
    for kind, value in stream(work, asked.steps, end):
        if kind == "steps":
            yield same, f"step {value} of {asked.steps}", same, same, same
        elif kind == "preview":
            yield value[0], same, same, same, same
        elif kind == "ended":
            yield None, "cancelled; nothing was kept", same, same, same
        else:
            made, said = value
            files, of_files = site.save(made, visitor)
            gallery = list(zip(files, map(caption, made), strict=True))
            lines = "\n".join(f"- {escaped(line)}" for line in (*said, *of_files))
            yield None, f"done\n\n{lines}", gallery, files, [each.notes for each in made]


def guarded(function: Callable) -> Callable:
    """For the form's events: what cannot be done is a sentence on the page, and no trace.

    Gradio passes the visitor to a first parameter that is annotated so.
    """
    import gradio as gr

    def run(visitor: gr.Request, **values):
        try:
            yield from function(visitor, values)
        except FAULTS as error:
            raise sentence(error) from error

    return run


def ending(site: Site) -> Callable:
    """For buttons that cancel."""
    import gradio as gr

    def end(visitor: gr.Request):
        site.sessions.end(visitor)

    return end


def build(site: Site) -> None:
    """Fills the current tab."""
    import gradio as gr

    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            model = gr.Dropdown(site.names, value=site.names[0], label="Model")
            about = gr.Markdown()
            people = form.photographs()
            gr.Markdown(form.CONSENT)
            if site.examples:
                gr.Examples(
                    [[file] for file in site.examples],
                    people["photograph_1"],
                    label="Drawn strangers",
                )
            found = gr.Gallery(
                label="Faces", columns=4, height=190, object_fit="contain", visible=False
            )
            prompt = gr.Textbox(
                label="Prompt", value=PROMPT, lines=2, elem_id="prompt", info="say man, woman, …"
            )
            parts = {
                part: gr.Textbox("", label=part.capitalize(), lines=1, visible=False)
                for part in PARTS
            }
            with gr.Accordion("Settings", open=False):
                chosen = form.settings(site.steps)
                pose = photograph("Photograph whose pose is followed", height=160)
            with gr.Row():
                go = gr.Button("Generate", variant="primary", elem_id="generate")
                stop = gr.Button("Cancel", elem_id="cancel")
                again = gr.Button("Same again", elem_id="again")
        with gr.Column(scale=2, min_width=320):
            outputs = Outputs()

    inputs = {"model": model, "prompt": prompt, **parts, "pose": pose, **people, **chosen}

    @guarded
    def generate(visitor, values):
        keep(site, visitor, values)
        usual = form.usual_strengths(site.models.open(site.models.named(values["model"])))
        pose = values["pose"]
        asked = form.request(
            values,
            [form.person(values)],
            pose=None if pose is None else pose.image,
            **form.read_settings(values, usual),
        )
        yield from show(site, values["model"], asked, visitor)

    def restore(notes):
        if not notes:
            raise sentence(ValueError("there is no image yet whose settings could be taken"))
        first = notes[0]
        set_to = [first["prompt"], *(first.get(part, "") for part in PARTS)]
        return [*set_to, first["seed"], False]

    def look_at(visitor: gr.Request, **values):
        return look(site, visitor, values)

    ran: Any = {"inputs_kwargs": inputs, "outputs": outputs.all, **ONE_AT_A_TIME}
    gr.on([go.click, prompt.submit], generate, api_name="generate", **ran)
    back = [prompt, *parts.values(), chosen["seed"], chosen["random_seed"]]
    restored = again.click(restore, outputs.notes, back, **PRIVATE)
    restored.success(generate, **ran, **PRIVATE)
    stop.click(ending(site), queue=False, **PRIVATE)
    tell(site, model, [about, chosen["strengths"]], parts)
    faces = [people[f"face_{n}"] for n in range(1, MAX_REFERENCES + 1)]
    photos = [people[f"photograph_{n}"] for n in range(1, MAX_REFERENCES + 1)]
    gr.on(
        [*(each.change for each in photos), *(each.input for each in faces)],
        look_at,
        inputs_kwargs={"model": model, **people},
        outputs=[found, *faces],
        show_progress="hidden",
        **PRIVATE,
    )


def keep(site: Site, visitor: Any, values: dict[str, Any]) -> None:
    """Remembers the files of a form's uploads as this visitor's."""
    for upload in form.uploads(values):
        site.sessions.keep(visitor, upload.path)


def tell(site: Site, model: Any, outputs: list, parts: dict[str, Any] | None = None) -> None:
    """Fills ``outputs`` with what the chosen model reads, now and with each choice.

    Args:
        parts: inputs by name that are shown where the model reads them.
    """
    import gradio as gr

    parts = parts or {}
    outputs = [*outputs, *parts.values()]
    about_model = functools.partial(describe, site, tuple(parts)), model, outputs
    gr.on([model.change], *about_model, **PRIVATE)
    gr.on(None, *about_model, **PRIVATE)


def describe(site: Site, parts: Sequence[str], name: str) -> list:
    """What a model reads, its strengths, which ``parts`` are shown: of a form that chose it."""
    import gradio as gr

    try:
        pipe = site.models.open(site.models.named(name))
    except FAULTS as error:
        raise sentence(error) from error
    read = [] if pipe.method is None else [n for n in pipe.conditioner.inputs if n in PARTS]
    shown = [gr.update(visible=part in read) for part in parts]
    if pipe.method is None:
        return ["It reads the prompt alone: photographs have no effect.", [], *shown]
    reads = []
    if pipe.reads_references:
        reads.append(f"one to {MAX_REFERENCES} photographs")
        if pipe.text.at_trigger:
            reads.append(f'the person as "{pipe.text.trigger_word}" after the word for them')
    rows = [[name, value, 0, 1] for name, value in form.usual_strengths(pipe).items()]
    return [f"It reads {', '.join([*reads, *read]) or 'the prompt'}.", rows, *shown]


def look(site: Site, visitor: Any, values: dict[str, Any]) -> list:
    """The faces that are found, and a choice where a photograph has several."""
    import gradio as gr

    keep(site, visitor, values)
    shown, choices = [], []
    with site.models.lock():
        detector = site.models.detector(site.models.named(values["model"]))
        for n in range(1, MAX_REFERENCES + 1):
            upload, face = values[f"photograph_{n}"], values[f"face_{n}"]
            faces = [] if upload is None else find_faces(upload.image, detector)
            names = [str(k) for k in range(1, len(faces) + 1)] or ["1"]
            face = face if face in names else "1"
            choices.append(gr.update(choices=names, value=face, visible=len(faces) > 1))
            if upload is not None:
                said = "no face found" if not faces else f"photograph {n}"
                shown.append((with_boxes(upload.image, faces, int(face) - 1), said))
    return [gr.update(value=shown or None, visible=bool(shown)), *choices]
