"""The tab that generates one person from photographs and a prompt."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_pipeline.records.schema import MAX_REFERENCES, PARTS
from persongen_jax.demo.painting import Request
from persongen_jax.demo.sessions import sentence, stream
from persongen_jax.demo.site import IN_LINE, PRIVATE, Site, caption
from persongen_jax.demo.tabs import form
from persongen_jax.demo.tabs.faces import gallery, keep, show_faces
from persongen_jax.demo.tabs.fields import escaped, photograph

PROMPT = "a photo of a man in a space suit, a beach with palm trees behind him"
NUMBERS = ("steps", "guidance", "width", "height", "images")
CANCELLED = "cancelled: what was not finished is not kept"


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


def show(
    site: Site, name: str, make: Callable[[dict[str, float]], Request], visitor: Any
) -> Iterator[tuple[Any, ...]]:
    """Values for Outputs.all while a request is computed, and at its end.

    Args:
        name: of the model. make: the request, from the model's usual strengths by name.
    """
    import gradio as gr

    same = gr.skip()
    with turn(site, visitor) as (waiting, end):
        for before in waiting:
            yield None, in_line(before), same, same, same
        if end.is_set():
            return
        yield None, "loading the model, or compiling it for this size", same, same, same
        asked = make(form.usual_strengths(site.models.open(site.models.named(name))))

        def work(progress, on_preview):
            return site.paint(name, asked, progress=progress, on_preview=on_preview)

        for kind, value in stream(work, asked.steps, end):
            if kind == "steps":
                yield same, f"step {value} of {asked.steps}", same, same, same
            elif kind == "preview":
                yield site.lend(value[0], visitor), same, same, same, same
            elif kind == "ended":
                yield None, CANCELLED, same, same, same
            else:
                made, said = value
                files, of_files = site.save(made, visitor)
                gallery = list(zip(files, map(caption, made), strict=True))
                lines = "\n".join(f"- {escaped(line)}" for line in (*said, *of_files))
                yield None, f"done\n\n{lines}", gallery, files, [each.notes for each in made]


@contextlib.contextmanager
def turn(site: Site, visitor: Any) -> Iterator[tuple[Iterator[int], threading.Event]]:
    """A place in the line: (how many are before, until nobody is; what ends the request).

    Raises:
        ValueError: too many wait.
    """
    ticket, end = site.line.enter(), site.sessions.begin(visitor)
    try:
        yield site.line.wait(ticket, end), end
    finally:
        site.line.leave(ticket)


def in_line(before: int) -> str:
    """What is said to whom waits."""
    return f"in the queue: {before} before you"


def guarded(function: Callable) -> Callable:
    """For the form's events: what cannot be done is a sentence on the page, and no trace.

    Gradio passes the visitor to a first parameter that is annotated so.
    """
    import gradio as gr

    def run(visitor: gr.Request, **values):
        try:
            yield from function(visitor, values)
        except Exception as error:
            raise sentence(error) from error

    return run


def cancels(site: Site, button: Any, events: list, outputs: list) -> None:
    """Lets a button end what its visitor has running or waiting.

    Args:
        events: that it ends. outputs: the preview and what is said, or the latter alone.
    """
    import gradio as gr

    def end(visitor: gr.Request):
        site.sessions.end(visitor)
        # Gradio takes one output's value as it is, and those of several as a list.
        return CANCELLED if len(outputs) == 1 else [None, CANCELLED]

    button.click(end, None, outputs, cancels=events, queue=False, **PRIVATE)


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
                _offer_examples(site, people["photograph_1"])
            found = gallery()
            prompt = gr.Textbox(
                label="Prompt", value=PROMPT, lines=2, elem_id="prompt", info="say man, woman, …"
            )
            parts = {
                part: gr.Textbox("", label=part.capitalize(), lines=1, visible=False)
                for part in PARTS
            }
            with gr.Accordion("Settings", open=False):
                chosen = form.settings(site.steps, site.guidance)
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
        pose = values["pose"]

        def make(usual):
            return form.request(
                values,
                [form.person(values)],
                pose=None if pose is None else pose.image,
                **form.read_settings(values, usual),
            )

        yield from show(site, values["model"], make, visitor)

    restorable = {"model": model, "about": about, "prompt": prompt, **parts, **chosen}

    def restore(notes):
        try:
            return restored_values(site, notes, restorable)
        except Exception as error:
            raise sentence(error) from error

    ran: Any = {"inputs_kwargs": inputs, "outputs": outputs.all, **IN_LINE}
    started = gr.on([go.click, prompt.submit], generate, api_name="generate", **ran)
    restored = again.click(restore, outputs.notes, list(restorable.values()), **PRIVATE)
    repeated = restored.success(generate, **ran, **PRIVATE)
    cancels(site, stop, [started, repeated], [outputs.preview, outputs.said])
    tell(site, model, [about, chosen["strengths"]], parts)
    show_faces(site, model, people, found)
    keep_uploads(site, [pose])


def _offer_examples(site: Site, photograph: Any) -> None:
    """Drawn strangers that a click makes the first photograph.

    Gradio's own Examples put a new component in its place, without its reading.
    """
    import gradio as gr

    shown = gr.Dataset(
        components=[gr.Image(type="filepath", render=False)],
        samples=[[file] for file in site.examples],
        label="Drawn strangers",
        type="index",
    )
    shown.click(lambda number: site.examples[number], shown, photograph, queue=False, **PRIVATE)


def restored_values(site: Site, notes: list[dict] | None, inputs: Sequence[str]) -> list:
    """Of the form's ``inputs``, what they were for the images that are shown.

    Raises:
        ValueError: there is none.
    """
    import gradio as gr

    if not notes:
        raise ValueError("there is no image yet whose settings could be taken")
    first, settings = notes[0], notes[0]["settings"]
    about, usual, *shown = describe(site, PARTS, settings["model"])
    scales = {**{row[0]: row[1] for row in usual}, **settings["scale"]}
    values = {
        "model": settings["model"],
        "about": about,
        "prompt": first["prompt"],
        "negative": first["negative_prompt"],
        "strengths": form.rows_of(scales),
        "seed": first["seed"],
        "random_seed": False,
        "sampler": settings["scheduler"] or form.MODELS_OWN,
        **{name: settings[name] or 0 for name in NUMBERS},
    }
    for part, update in zip(PARTS, shown, strict=True):
        values[part] = gr.update(value=first.get(part, ""), visible=update["visible"])
    return [values[name] for name in inputs]


def keep_uploads(site: Site, photographs: Sequence[Any]) -> None:
    """Remembers what is uploaded into photographs whose faces nobody looks at."""
    import gradio as gr

    def remember(visitor: gr.Request, upload):
        if upload is not None:
            site.sessions.keep(visitor, upload.path)

    for each in photographs:
        each.change(remember, each, None, queue=False, **PRIVATE)


def tell(
    site: Site,
    model: Any,
    outputs: list,
    parts: dict[str, Any] | None = None,
    several: bool = False,
) -> None:
    """Fills ``outputs`` with what the chosen model reads, now and with each choice.

    Args:
        parts: inputs by name that are shown where the model reads them.
        several: whether the form places several people.
    """
    import gradio as gr

    parts = parts or {}
    outputs = [*outputs, *parts.values()]
    about_model = functools.partial(describe, site, tuple(parts), several=several), model, outputs
    # Of what a visitor chooses: "same again" sets the model with all that belongs to it.
    gr.on([model.input], *about_model, **PRIVATE)
    gr.on(None, *about_model, **PRIVATE)


def describe(site: Site, parts: Sequence[str], name: str, several: bool = False) -> list:
    """What a model reads, its strengths, which ``parts`` are shown: of a form that chose it."""
    import gradio as gr

    try:
        pipe = site.models.open(site.models.named(name))
    except Exception as error:
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
    about = f"It reads {', '.join([*reads, *read]) or 'the prompt'}."
    if several and not pipe.conditioner.of_people:
        about += " **It cannot place two people**: choose another model."
    return [about, rows, *shown]
