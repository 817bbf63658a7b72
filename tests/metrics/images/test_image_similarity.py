"""CLIP-I, DINO-I and DINOv2-I: the mean over pairs, whose pictures, and by whom they are judged."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.pictures.transforms import imagenet_preprocess
from persongen_jax.metrics.base import Generated, Known, Owner, People
from persongen_jax.metrics.feature_judges import ClipJudge
from persongen_jax.metrics.images.clip_i import ClipI
from persongen_jax.metrics.judge_check import check_judges
from persongen_jax.metrics.measures import measure_all
from persongen_jax.metrics.registry import find_class, open_metrics
from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.formats.dino import load_dino
from tests.helpers.encoders.dino_files import facebook_names, torch_dino, torch_dinov2
from tests.metrics.known import generated, known_set

ALL = ("clip_i", "dino_i", "dinov2_i")


class Table:
    """Replaces a ClipScore: an image's number selects the row."""

    networks = ()

    def __init__(self, rows):
        rows = np.asarray(rows, np.float32)
        self.rows, self.calls = rows / np.linalg.norm(rows, axis=1, keepdims=True), []

    def image_features(self, images):
        self.calls.append(len(images))
        return self.rows[[int(image[0, 0, 0]) for image in images]]


def metric_of(table):
    return ClipI(ConfigDict({"clip": "vit"}), SimpleNamespace(clip=ClipJudge(table)))


def test_the_mean_over_every_pair_of_the_same_person(capsys):
    table = Table(np.random.default_rng(0).standard_normal((9, 5)))
    metric, known = metric_of(table), known_set({"ann": [0, 1, 2], "bob": [3], "eve": []})
    made = generated([4, 5, 6, 7, 8], ["ann", "bob", "ann", "eve", "bob"])
    metric.prepare(known)
    assert capsys.readouterr().out == "in_train: no real picture of eve: left out of CLIP-I\n"
    (found,) = measure_all([metric], made, known).values()
    rows = table.rows.astype(float)
    ann = np.mean([rows[i] @ rows[j] for i in (4, 6) for j in (0, 1, 2)])
    bob = np.mean([rows[i] @ rows[3] for i in (5, 8)])
    assert found["people"]["ann"] == [pytest.approx(ann), 2]
    assert found["people"]["bob"] == [pytest.approx(bob), 2]
    assert found["n"] == 4 and found["mean"] == pytest.approx((ann + bob) / 2)
    assert found["judge"] == "vit" and found["title"] == "CLIP-I" and found["n_real"] == 4
    metric(made, known)
    assert table.calls == [4, 5]  # real and generated pictures, once each


def test_features_that_are_not_finite_are_an_error():
    metric = metric_of(Table([[1, 0], [0, np.nan], [0, 1]]))
    with pytest.raises(ValueError, match="CLIP-I.*1 of 2 of the generated.*vit are damaged"):
        metric(generated([1, 2], ["ann"] * 2), known_set({"ann": [0]}))
    with pytest.raises(ValueError, match="1 of 1 of the real pictures of ann"):
        metric.prepare(known_set({"ann": [1]}))


def test_without_a_judge_they_are_left_out(capsys):
    assert open_metrics(ConfigDict({"metrics": ALL, "clip": "", "dino": ""})) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == (
        "DINO-I is not measured: config.dino names no file or folder of DINO's image encoder"
    )
    assert len(lines) == 3 and "config.dinov2" in lines[2]
    assert [find_class(name).judge_key for name in ALL] == ["clip", "dino", "dinov2"]


class Networks:
    """Tiny encoders of DINO and DINOv2 as files, and as transformers' networks."""

    def __init__(self, folder):
        sizes = {"patch_size": 56, "num_hidden_layers": 1}
        self.torch = {"dino": torch_dino(224, **sizes), "dinov2": torch_dinov2(448, **sizes)}
        self.paths = {name: folder / f"{name}.pth" for name in self.torch}
        self.torch["dinov2"].save_pretrained(folder / "dinov2")
        self.paths["dinov2"] = folder / "dinov2"
        torch.save(facebook_names(self.torch["dino"]), self.paths["dino"])

    def config(self, *metrics, **paths):
        paths = {key: str(path) for key, path in {**self.paths, **paths}.items()}
        return ConfigDict({"metrics": metrics, **paths})

    def features(self, name, pictures):
        pixels = np.stack([imagenet_preprocess(p) for p in pictures]).transpose(0, 3, 1, 2)
        with torch.no_grad():
            out = self.torch[name](torch.from_numpy(pixels)).last_hidden_state[:, 0].numpy()
        return out / np.linalg.norm(out, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return Networks(tmp_path_factory.mktemp("dino"))


def photographs(count, size, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


def test_dino_i_from_pictures_as_by_torch(networks):
    real = [*photographs(2, (60, 80), 0), *photographs(1, (300, 250), 1)]
    made = photographs(3, (64, 64), 2)
    owner = Owner("ann", lambda: real[:1], lambda limit=None: real[:limit])
    known = Known("mine", People(lambda: [owner]), People(lambda: []))
    metrics = open_metrics(networks.config("dino_i", "dinov2_i"))
    for metric, name in zip(metrics, networks.torch, strict=True):
        wanted = networks.features(name, made) @ networks.features(name, real).T
        found = metric(Generated(made, ["ann"] * 3), known).values
        assert np.abs(found - wanted.mean(1)).max() < 1e-4
        assert metric.judge == str(networks.paths[name])


def test_the_other_version_is_another_metric(networks):
    with pytest.raises(WeightsError, match=r"of DINOv2, and DINO is needed.*--dinov2.*dinov2_i"):
        open_metrics(networks.config("dino_i", dino=networks.paths["dinov2"]))
    with pytest.raises(WeightsError, match=r"of DINO, and DINOv2 is needed"):
        open_metrics(networks.config("dinov2_i", dinov2=networks.paths["dino"]))


def test_a_judge_that_the_method_reads_is_refused(networks):
    metrics = open_metrics(networks.config("dino_i"))
    model = nnx.Dict(encoder=load_dino(networks.paths["dino"]))
    with pytest.raises(ValueError, match=r"DINO-I is judged by .*encoder/.*config\.dino\)"):
        check_judges(metrics, model, ("encoder",), ())
