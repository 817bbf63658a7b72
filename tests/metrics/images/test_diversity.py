"""Diversity by LPIPS, copying and sharpness, on faces whose place is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from data_pipeline.faces.align import align_face
from data_pipeline.faces.box_crop import crop_box
from data_pipeline.faces.detectors import Detection
from persongen_jax.metrics.base import Generated
from persongen_jax.metrics.embedders.lpips import PerceptualDistance
from persongen_jax.metrics.face_judge import FaceJudge
from persongen_jax.metrics.images.copy import Copy
from persongen_jax.metrics.images.face_diversity import FaceDiversity
from persongen_jax.metrics.images.face_sharpness import FaceSharpness, laplacian_variance
from persongen_jax.metrics.images.image_diversity import ImageDiversity
from persongen_jax.metrics.measures import measure_all
from persongen_jax.metrics.registry import open_metrics
from tests.helpers.encoders.judge_files import golden, patterns, seeded, shapes_of
from tests.metrics.known import TableJudges, generated, known_set

LANDMARKS = np.array([(20.0, 22), (36, 22), (28, 30), (22, 38), (34, 38)])
CONFIG = ConfigDict({"lpips": "lpips", "face_net": "net", "face_detector": "table"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """LPIPS on a narrow VGG16, whose three pairs the authors' package has measured."""
    folder = tmp_path_factory.mktemp("lpips")
    save_file(seeded(shapes_of("lpips vgg 16")), folder / "whole.safetensors")
    return folder


def test_all_pairs_are_the_authors_distances(folder, monkeypatch):
    distance = PerceptualDistance(folder)
    both = [patterns(3, 64, 80, seed).astype(np.float32) / 127.5 - 1 for seed in (5, 6)]
    images = np.concatenate([*both, both[0][:1], *[both[0] * 0.9, both[0] * 0.8]])  # two blocks
    table = distance.pairs(images)
    wanted = golden()["lpips vgg 16"]
    assert np.abs(table[[0, 1, 2], [3, 4, 5]] / wanted - 1).max() < 1e-4
    assert np.array_equal(table, table.T) and table[0, 0] == 0 and table[0, 6] < 1e-5
    assert table[0, 7] < table[0, 3]
    monkeypatch.setattr("persongen_jax.metrics.embedders.lpips.MEMORY", 0)  # nothing is kept
    assert np.array_equal(distance.pairs(images), table)
    assert distance.net == "vgg" and distance.pairs(images[:1]).tolist() == [[0]]


class Distances:
    """Replaces a PerceptualDistance: the difference of means."""

    net, networks = "table", ()

    def pairs(self, images):
        means = np.array([image.mean() / 127.5 - 1 for image in images])
        return np.abs(means[:, None] - means)


class Finder:
    """Replaces a face embedder: a face at one place in every image that is not black."""

    detector_name, networks = "finder", ()

    def __init__(self):
        self.calls = 0

    def detect(self, images):
        self.calls += 1
        face = Detection((16.0, 16.0, 40.0, 44.0), LANDMARKS, 1.0)
        return [face if image.any() else None for image in images]


def judges():
    return SimpleNamespace(lpips=Distances(), faces=FaceJudge(Finder()))


def grey(*levels, size=(64, 64)):
    return np.stack([np.full((*size, 3), level, np.uint8) for level in levels])


def test_the_mean_over_pairs_of_one_person():
    made = Generated(grey(51, 102, 204, 255), ["ann", "ann", "ann", "bob"])
    (found,) = measure_all(
        [ImageDiversity(CONFIG, judges())], made, known_set({"ann": [], "bob": []})
    ).values()
    pairs = np.array([51, 153, 102]) / 127.5
    assert found["people"] == {"ann": [pytest.approx(pairs.mean(), rel=1e-5), 3]}
    assert found["missing"] == 1 and found["n"] == 3  # bob has one image
    assert found["net"] == "table" and found["pixels"] == 256 and found["judge"] == "lpips"


def test_faces_alone_are_compared_and_found_once():
    images = grey(51, 0, 102, 204)
    images[2, 50:] = 255  # outside of the face
    made, both = Generated(images, ["ann"] * 4), judges()
    metrics = [FaceDiversity(CONFIG, both), FaceSharpness(CONFIG, both)]
    found = measure_all(metrics, made, known_set({"ann": []}))
    crops = [align_face(images[i], LANDMARKS, 256).astype(float) for i in (0, 2, 3)]
    a, b, c = (crop.mean() / 127.5 for crop in crops)
    wanted = (abs(a - b) + abs(a - c) + abs(b - c)) / 3
    diversity, sharpness = found["face_diversity"], found["face_sharpness"]
    assert diversity["mean"] == pytest.approx(wanted, rel=1e-4) and diversity["missing"] == 1
    assert diversity["judge"] == "lpips; faces by finder" and sharpness["judge"] == "finder"
    assert sharpness["missing"] == 1 and both.faces.embedder.calls == 1


def test_distances_that_are_not_finite_are_an_error():
    both = judges()
    both.lpips.pairs = lambda images: np.full((len(images),) * 2, np.nan)
    with pytest.raises(ValueError, match="image diversity.*2 of 2 of the generated.*lpips are dam"):
        ImageDiversity(CONFIG, both)(Generated(grey(1, 2), ["a", "a"]), known_set({}))


def test_a_blurred_face_is_less_sharp():
    sharp = patterns(1, 64, 64, seed=0)[0]
    pairs = sharp.astype(float)
    blurred = (pairs + np.roll(pairs, 1, 0) + np.roll(pairs, 1, 1)) / 3
    assert laplacian_variance(blurred.astype(np.uint8)) < 0.5 * laplacian_variance(sharp)
    dots = np.zeros((5, 5, 3), np.uint8)
    dots[2, 2] = 100  # the nine inner cells: -400, four times 100 and four times 0
    assert laplacian_variance(dots) == pytest.approx((400**2 + 4 * 100**2) / 9)


def test_a_copy_is_closer_than_other_photographs(capsys):
    def at(angle):
        return [np.cos(angle), np.sin(angle)]

    # 0: ann's reference, 1 and 2 her other pictures; 3: bob's only one; 4 to 6 are generated.
    table = [at(0), at(0.5), at(0.7), at(2), at(0), at(0.6), at(2)]
    metric = Copy(CONFIG, TableJudges(table, [True] * 7))
    known = known_set({"ann": [0, 1, 2], "bob": [3]})
    metric.prepare(known)
    said = capsys.readouterr().out
    assert said == "in_train: no further real picture with a face of bob: left out of copying\n"
    (found,) = measure_all([metric], generated([4, 5, 6], ["ann", "ann", "bob"]), known).values()
    usual = (np.cos(0.5) + np.cos(0.7)) / 2
    assert found["people"]["ann"] == [pytest.approx((1 - usual + np.cos(0.6) - usual) / 2), 2]
    assert found["missing"] == 1 and found["n_real"] == 2


def test_boxes_are_cut_as_by_facenet_pytorch():
    picture, wanted = patterns(1, 200, 240, seed=8)[0], golden()
    for i, box in enumerate(((40.7, 30.2, 121.9, 150.4), (-8.0, 100.0, 90.0, 230.0))):
        assert np.array_equal(crop_box(picture, box, 160)[::7, ::7], wanted[f"face {i}"])
    with pytest.raises(ValueError, match="not in an image of 240 x 200"):
        crop_box(picture, (250.0, 10, 260, 20), 160)


def test_without_lpips_they_are_left_out(capsys):
    names = ("image_diversity", "face_diversity")
    assert open_metrics(ConfigDict({"metrics": names, "lpips": ""})) == []
    assert capsys.readouterr().out == (
        "image diversity, face diversity are not measured: config.lpips names no folder or file "
        "of LPIPS\n"
    )
