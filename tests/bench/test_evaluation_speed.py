"""The benchmark of measuring images: both sides on tiny networks, whose features must agree."""

import numpy as np
import pytest

from benchmarks.evaluation import speed
from benchmarks.evaluation.speed_material import METRICS, draw, likeness, to_others


def test_what_differs_is_refused():
    alike = {key: np.zeros((2, 3)) for m in METRICS for key in (m, f"{m} figures")}
    alike[speed.CROPS] = np.zeros((2, 3))
    other = {**alike, "face_sim figures": np.full((2, 3), 2e-3)}
    assert speed.differences(alike, other)["face_sim"] == (0, 2e-3)
    for bad in (2e-3, np.nan):
        with pytest.raises(ValueError, match="dino_i: features differ by"):
            speed.differences(alike, {**alike, "dino_i": np.full((2, 3), bad)})


def test_figures_are_of_each_person():
    features = np.repeat(np.eye(2), 20, axis=0)
    assert np.array_equal(likeness(features), np.ones(40))
    tables = [np.full((20, 20), 3.0) * (1 - np.eye(20)), np.zeros((1, 1))]
    assert np.array_equal(to_others(tables), [3.0] * 20 + [0.0])
    assert len(set(draw(20).prompts)) == 2


@pytest.mark.slow
def test_both_sides_agree(tmp_path):
    words = ["--images", "21", "--size", "tiny", "--rounds", "1"]
    speed.main([*words, "--out", str(tmp_path / "report.md")])
    text = (tmp_path / "report.md").read_text()
    assert all(f"| {title} |" in text for title in METRICS.values())
    assert "say nothing about speed" in text
