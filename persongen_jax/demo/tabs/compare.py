"""The tab that shows several models side by side, and finished studies."""

from data_pipeline.records.schema import PARTS
from persongen_jax.demo import folders
from persongen_jax.demo.sessions import sentence, stream
from persongen_jax.demo.site import IN_LINE, PRIVATE, Site, caption
from persongen_jax.demo.tabs import form
from persongen_jax.demo.tabs.faces import gallery, keep, show_faces
from persongen_jax.demo.tabs.fields import escaped, folder_choice
from persongen_jax.demo.tabs.generate import CANCELLED, PROMPT, cancels, guarded, in_line, turn


def build(site: Site) -> None:
    """Fills the current tab."""
    import gradio as gr

    _build_models(site)
    gr.Markdown("## A finished study")
    _build_study(site)


def _build_models(site: Site) -> None:
    import gradio as gr

    chosen_models = gr.CheckboxGroup(site.names, value=site.names[:2], label="Models")
    people = form.photographs()
    found = gallery()
    gr.Markdown(form.CONSENT)
    prompt = gr.Textbox(label="Prompt", value=PROMPT, lines=2)
    parts = {part: gr.Textbox(label=part.capitalize()) for part in PARTS}
    with gr.Accordion("Settings", open=False):
        chosen = form.settings(site.steps, site.guidance, strengths=False)
    with gr.Row():
        go = gr.Button("Compare", variant="primary", elem_id="compare")
        stop = gr.Button("Cancel")
    said = gr.Markdown(elem_classes="said")
    images = gr.Gallery(label="The same noise for all", columns=4, height="auto")

    @guarded
    def compare(visitor, values):
        if not values["models"]:
            raise ValueError("choose at least one model")
        keep(site, visitor, values)
        shown, lines, seed = [], [], None
        with turn(site, visitor) as (waiting, end):
            for before in waiting:
                yield in_line(before), gr.skip()
            if end.is_set():
                return
            for name in values["models"]:
                yield f"{escaped(name)}: loading, or compiling for this size", shown
                read = form.read_settings(values)
                seed = read["seed"] if seed is None else seed
                asked = form.request(values, [form.person(values)], **{**read, "seed": seed})

                def work(progress, on_preview, name=name, asked=asked):
                    return site.paint(name, asked, progress=progress)

                for kind, value in stream(work, asked.steps, end):
                    if kind == "steps":
                        yield f"{escaped(name)}: step {value} of {asked.steps}", gr.skip()
                    elif kind == "ended":
                        yield CANCELLED, shown
                        return
                    elif kind == "done":
                        made, told = value
                        files, of_files = site.save(made, visitor)
                        captions = [f"{name} · {caption(each)}" for each in made]
                        shown += zip(files, captions, strict=True)
                        lines += [f"- {escaped(f'{name}: {line}')}" for line in (*told, *of_files)]
                        yield gr.skip(), shown
            yield "\n".join(["done", "", *lines]), shown

    inputs = {"models": chosen_models, "prompt": prompt, **parts, **people, **chosen}
    ran = {"inputs_kwargs": inputs, "outputs": [said, images], **IN_LINE}
    started = go.click(compare, **ran, **PRIVATE)
    cancels(site, stop, [started], [said])
    show_faces(site, chosen_models, people, found)


def _build_study(site: Site) -> None:
    import gradio as gr

    study = folder_choice(site, "Study", folders.STUDY)
    table = gr.Dataframe(label="Means and 95 % intervals", interactive=False, wrap=True)
    plots = gr.Gallery(label="Trajectories", columns=2, height="auto")
    images = gr.Gallery(label="Images of the row that was clicked", columns=6, height="auto")

    def open_study(name):
        try:
            folder = folders.allowed(name, site.roots)
            columns, rows = folders.study_table(folder)
        except Exception as error:
            raise sentence(error) from error
        shown = [folders.picture(file) for file in folders.study_plots(folder)]
        return gr.update(value={"headers": columns, "data": rows}), shown, None

    def open_row(name, event: gr.SelectData):
        try:
            folder = folders.allowed(name, site.roots)
            columns, rows = folders.study_table(folder)
            values = dict(zip(columns, event.row_value, strict=False))
            method, where = str(values.get("run", "")), str(values.get("set", ""))
            if method not in {str(row[columns.index("run")]) for row in rows}:
                raise ValueError("choose a row of the table")
            return [folders.picture(f) for f in folders.study_images(folder, method, where)]
        except Exception as error:
            raise sentence(error) from error

    study.change(open_study, study, [table, plots, images], **PRIVATE)
    table.select(open_row, study, images, **PRIVATE)
