"""The tab that watches a training while it runs."""

from typing import Any

from persongen_jax.demo import folders
from persongen_jax.demo.sessions import sentence
from persongen_jax.demo.site import PRIVATE, Site
from persongen_jax.demo.tabs.fields import folder_choice

EVERY = 5.0  # seconds
PLOTS = 2  # of metrics that are validated: Face-Sim and CLIP-T come first


def build(site: Site) -> None:
    """Fills the current tab."""
    import gradio as gr

    with gr.Row():
        run = folder_choice(site, "Run", folders.RUN)
        again = gr.Button("Look for runs again", min_width=120)
    said = gr.Markdown()
    with gr.Row():
        logged = [
            gr.LinePlot(x="step", y=title, title=title, height=220, min_width=260)
            for title in folders.LOGGED.values()
        ]
    with gr.Row():
        judged = [
            gr.LinePlot(x="step", y="value", color="of", height=260, min_width=320, visible=False)
            for _ in range(PLOTS)
        ]
    step = gr.Slider(0, 1, 0, step=1, label="Contact sheets of validation", visible=False)
    sheets = gr.Gallery(label="Contact sheets", columns=1, height="auto")
    clock = gr.Timer(EVERY)

    def look(name):
        if not name:
            return [gr.skip()] * (1 + len(logged) + PLOTS + 1)
        try:
            folder = folders.allowed(name, site.roots)
            return _values(folder)
        except Exception as error:
            raise sentence(error) from error

    def show(name, number):
        if not name:
            return None
        try:
            steps = folders.sheets(folders.allowed(name, site.roots))
        except Exception as error:
            raise sentence(error) from error
        if not steps:
            return None
        chosen = list(steps)[min(int(number), len(steps) - 1)]  # of another run before
        return [(folders.picture(file), file.stem) for file in steps[chosen]]

    def search():
        return gr.update(choices=folders.found(site.roots, folders.RUN))

    quiet: Any = {**PRIVATE, "show_progress": "hidden"}
    outputs = [said, *logged, *judged, step]
    run.change(look, run, outputs, **quiet)
    clock.tick(look, run, outputs, queue=False, **quiet)  # outside of the queue nothing is said
    gr.on([run.change, step.change], show, [run, step], sheets, **quiet)
    again.click(search, None, run, **quiet)


def _values(folder) -> list:
    """Of all that is shown of a run but its sheets."""
    import gradio as gr
    import pandas

    curves = folders.training_curves(folder)
    tables = [pandas.DataFrame(points, columns=["step", t]) for t, points in curves.items()]
    last = max((points[-1][0] for points in curves.values() if points), default=0)
    judged = list(folders.validation_curves(folder).items())[:PLOTS]
    plots = []
    for title, by_set in judged:
        rows = [
            (step, value, name.replace("_", "-") + kind)
            for name, points in by_set.items()
            for step, mean, low, high in points
            for value, kind in ((mean, ""), (low, ", low"), (high, ", high"))
        ]
        table = pandas.DataFrame(rows, columns=["step", "value", "of"])
        plots.append(gr.LinePlot(table, title=f"{title}, 95 % interval", visible=True))
    plots += [gr.LinePlot(visible=False)] * (PLOTS - len(plots))
    steps = list(folders.sheets(folder))
    slider = gr.update(
        maximum=max(len(steps) - 1, 1),
        visible=bool(steps),
        label=f"Contact sheets, number of the validation (steps {', '.join(map(str, steps))})",
    )
    return [f"step {last}", *tables, *plots, slider]
