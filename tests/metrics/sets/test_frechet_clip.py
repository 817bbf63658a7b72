"""The Fréchet distance against closed forms and against scipy's matrix root."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg

from persongen_jax.metrics.feature_judges import ClipJudge
from persongen_jax.metrics.measures import measure_all
from persongen_jax.metrics.sets.frechet_clip import FrechetClip, frechet_distance
from tests.metrics.known import generated, known_set


def test_the_same_images_are_at_distance_0_and_a_shift_counts_squared():
    rows = np.random.default_rng(0).standard_normal((50, 6))
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(rows, rows + 3) == pytest.approx(6 * 9)
    # One axis twice as wide: (2 - 1)^2 of its variance.
    wide = rows * [2, 1, 1, 1, 1, 1]
    shift = np.square(rows[:, 0].mean())
    cross = frechet_distance(rows[:, :1], wide[:, :1])
    assert cross == pytest.approx(rows[:, 0].var(ddof=1) + shift)


def test_as_with_the_matrix_root():
    rng = np.random.default_rng(1)
    a = rng.standard_normal((40, 5)) @ rng.standard_normal((5, 5))
    b = rng.standard_normal((60, 5)) @ rng.standard_normal((5, 5)) + 1
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-6)


def test_fewer_images_than_features():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((4, 20)), rng.standard_normal((5, 20))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-4)
    assert np.isfinite(frechet_distance(a, b)) and frechet_distance(a, b) > 1


@pytest.mark.parametrize("shapes", [((1, 3), (5, 3)), ((5, 3), (5, 4)), ((5,), (5,))])
def test_what_has_no_covariance_is_refused(shapes):
    with pytest.raises(ValueError, match="features"):
        frechet_distance(*(np.ones(shape) for shape in shapes))


class Features:
    """Replaces a ClipScore: an image's number selects the row."""

    networks = ()

    def __init__(self, table):
        self.table, self.calls = table, 0

    def image_features(self, images):
        self.calls += 1
        return self.table[[int(image[0, 0, 0]) for image in images]]


def test_the_metric_compares_with_all_real_pictures_of_the_set(capsys):
    table = np.random.default_rng(3).standard_normal((8, 3)).astype(np.float32)
    clip = Features(table)
    judges = SimpleNamespace(clip=ClipJudge(clip))
    metric = FrechetClip(SimpleNamespace(clip="clip-vit"), judges)
    known = known_set({"a": [0, 1, 2], "b": [3]})
    for _ in range(2):
        (found,) = measure_all([metric], generated([4, 5, 6, 7], "aabb"), known).values()
    assert found["mean"] == pytest.approx(frechet_distance(table[4:], table[:4]))
    assert found["n"] == 4 and found["n_real"] == 4 and found["low"] is None
    assert found["over"] == "set" and found["judge"] == "clip-vit" and "people" not in found
    assert clip.calls == 3  # real images are encoded once
    assert measure_all([metric], generated([4], "a"), known) == {}
    assert measure_all([metric], generated([4, 5], "aa"), known_set({"a": [0]})) == {}
    said = capsys.readouterr().out
    assert "gives no figure: 1 generated and 4 real images: give at least two of either" in said
    assert "gives no figure: 2 generated and 1 real images" in said
