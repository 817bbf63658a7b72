"""Trajectories: reading rows, selecting curves, a plot with a panel per metric and set."""

import json

import numpy as np
import pytest
from PIL import Image

from persongen_jax.evaluation import trajectories
from persongen_jax.evaluation.trajectories import (
    curve,
    plot_trajectories,
    plotted_metrics,
    read_rows,
)
from persongen_jax.metrics.measures import measure


def row(step, name, **metrics):
    metrics = {k: measure(v, ["a", "b"][: len(v)]) for k, v in metrics.items()}
    return {"step": step, "set": name, "metrics": metrics}


ROWS = [
    row(100, "in_train", clip_t=[21, 23], face_sim=[0.3, 0.5]),
    row(0, "in_train", clip_t=[20, 24], face_sim=[]),
    row(0, "out_of_train", clip_t=[20]),
]


def test_rows_of_a_file_without_a_cut_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS) + '{"step": 200, "se')
    assert read_rows(path) == ROWS
    assert read_rows(tmp_path / "none.jsonl") == []


def test_a_curve_has_the_measured_steps_in_order():
    (step, mean, low, high), later = curve(ROWS, "in_train", "clip_t")
    assert (step, mean, later[:2]) == (0, 22, (100, 22))
    # Two people: the range between them, half of it times Student's t of 12.706.
    assert (low, high) == pytest.approx((22 - 12.706 * 2, 22 + 12.706 * 2), abs=1e-2)
    assert later[3] - later[2] == pytest.approx((high - low) / 2)
    assert [point[0] for point in curve(ROWS, "in_train", "face_sim")] == [100]
    assert curve(ROWS, "out_of_train", "clip_t") == [(0, 20, None, None)]
    assert curve(ROWS, "out_of_domain", "clip_t") == []


def test_rows_decide_what_is_plotted():
    assert plotted_metrics({"x": ROWS}) == {"clip_t": "CLIP-T", "face_sim": "Face-Sim"}
    own = {**measure([1], ["a"]), "title": "mine", "form": "{}", "over": "set", "judge": ""}
    rows = [
        row(0, "in_train", rank1_10=[1, 0]),  # by the registry it has no trajectory
        {"step": 0, "set": "in_train", "metrics": {"mine": {**own, "plotted": True}}},
        {"step": 0, "set": "in_train", "metrics": {"hidden": {**own, "plotted": False}}},
    ]
    assert list(plotted_metrics({"x": rows, "y": ROWS})) == ["mine", "clip_t", "face_sim"]


def ink(path):
    """Coloured pixels: curves and bands, but no axes."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (np.ptp(pixels, axis=-1) > 40).sum()


def test_plots_of_one_run_and_of_several(tmp_path):
    one = plot_trajectories({"photomaker": ROWS}, tmp_path / "one.png")
    several = plot_trajectories(
        {"photomaker": ROWS, "photomaker_bg": ROWS[:1]}, tmp_path / "several.png"
    )
    assert one.exists() and several.exists() and ink(one) > 100
    # The same panels, and a legend next to them.
    assert Image.open(one).height == Image.open(several).height
    assert Image.open(one).width < Image.open(several).width
    assert ink(several) > ink(one)
    clip_alone = plot_trajectories({"x": ROWS[2:]}, tmp_path / "clip.png")
    assert Image.open(clip_alone).height < Image.open(one).height
    assert not list(tmp_path.glob("*.part"))


def test_nothing_measured_nothing_drawn(tmp_path):
    assert plot_trajectories({"x": [row(0, "in_train", clip_t=[])]}, tmp_path / "x.png") is None
    assert plot_trajectories({}, tmp_path / "x.png") is None
    assert not (tmp_path / "x.png").exists()


def test_a_run_has_one_colour_and_a_legend_whatever_it_lacks(tmp_path, monkeypatch):
    made, make = [], trajectories._figure
    monkeypatch.setattr(trajectories, "_figure", lambda **kw: made.append(make(**kw)) or made[-1])
    runs = {
        "late": [row(0, "out_of_train", clip_t=[20, 21])],  # nothing on the first panel's set
        "faceless": [row(0, "in_train", clip_t=[20, 21]), row(0, "out_of_train", clip_t=[1, 2])],
        "empty": [row(0, "in_train", clip_t=[])],
        "whole": [row(0, name, clip_t=[2, 3], face_sim=[0, 1]) for name in trajectories.SETS[:2]],
    }
    plot_trajectories(runs, tmp_path / "x.png")
    (figure,) = made
    colours = {}
    for axis in figure.axes:
        for line in axis.get_lines():
            colours.setdefault(line.get_label(), set()).add(line.get_color())
    assert all(len(own) == 1 for own in colours.values())
    assert len(set.union(*colours.values())) == len(colours) == 3
    (legend,) = figure.legends
    shown = zip(legend.get_texts(), legend.get_lines(), strict=True)
    shown = [(text.get_text(), {line.get_color()}) for text, line in shown]
    assert shown == [(name, colours[name]) for name in ("late", "faceless", "whole")]
