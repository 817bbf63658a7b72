"""FID, KID, Inception Score and CMMD against the public tools, and what they say of small sets.

What the tools gave is stored: tests/goldens/judges/record.py.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image

from data_pipeline.pictures.transforms import CLIP_MEAN, CLIP_STD
from persongen_jax.metrics.base import Generated, Known, Owner, People
from persongen_jax.metrics.embedders.cmmd import cmmd_preprocess
from persongen_jax.metrics.embedders.inception_resize import VARIANTS
from persongen_jax.metrics.feature_judges import InceptionJudge
from persongen_jax.metrics.measures import measure_all
from persongen_jax.metrics.registry import find_class, open_metrics
from persongen_jax.metrics.sets.cmmd import Cmmd, gaussian
from persongen_jax.metrics.sets.fid import Fid
from persongen_jax.metrics.sets.frechet_clip import frechet_distance
from persongen_jax.metrics.sets.inception_score import InceptionScore, split_scores
from persongen_jax.metrics.sets.kid import Kid, subset_distances
from persongen_jax.metrics.sets.mmd import cubic, kernel_sums
from persongen_jax.weights.errors import WeightsError
from tests.helpers.encoders.judge_files import clouds, golden, patterns, seeded, shapes_of
from tests.helpers.encoders.tiny_clip import write_tiny_clip
from tests.metrics.known import generated, known_set

GOLDEN = golden()
CLOSE = 1e-3  # relative; the worst measured are in docs/metrics.md
TOOLS = ("clean", "pytorch-fid", "torch-fidelity")


# ---- from features -----------------------------------------------------------------------------


def test_figures_of_features_as_the_tools_give_them():
    a, b = clouds(300, 64, seed=1), clouds(200, 64, seed=2)
    for tool in TOOLS:
        assert frechet_distance(a, b) == pytest.approx(GOLDEN[f"clouds {tool} fid"], rel=1e-6)
    kid = subset_distances(*(x.astype(np.float64) for x in (a, b)), size=200)
    assert kid.mean() == pytest.approx(GOLDEN["clouds torch-fidelity kid"], rel=CLOSE)
    assert kid.std() == pytest.approx(GOLDEN["clouds torch-fidelity kid std"], rel=CLOSE)
    scores = split_scores(a)
    assert scores.mean() == pytest.approx(GOLDEN["clouds torch-fidelity is"], rel=1e-5)
    assert scores.std() == pytest.approx(GOLDEN["clouds torch-fidelity is std"], rel=CLOSE)
    with pytest.raises(ValueError, match="at least two rows"):
        subset_distances(a[:1], b)
    with pytest.raises(ValueError, match="at least 10 rows"):
        split_scores(a[:9])


def test_the_mmd_written_plainly_and_without_a_group():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((9, 4)), rng.standard_normal((7, 4)) + 0.5
    groups = np.arange(9) % 3, np.arange(7) % 3
    for kernel in (cubic, gaussian):
        sums = kernel_sums(kernel, x, y, groups)
        for without in (None, 0, 2):
            a, b = (rows[own != without] for rows, own in zip((x, y), groups, strict=True))
            found = sums if without is None else sums.without(without)
            xx, yy, xy = kernel(a, a), kernel(b, b), kernel(a, b)
            biased = xx.mean() + yy.mean() - 2 * xy.mean()
            n, m = len(a), len(b)
            unbiased = (xx.sum() - np.trace(xx)) / (n * (n - 1)) - 2 * xy.mean()
            unbiased += (yy.sum() - np.trace(yy)) / (m * (m - 1))
            assert found.biased() == pytest.approx(biased)
            assert found.unbiased() == pytest.approx(unbiased)
    one = kernel_sums(cubic, x[:1], y[:1])
    assert np.isnan(one.unbiased()) and np.isnan(one.without(0).biased())


def test_cmmd_as_googles_code_with_many_rows_at_once(monkeypatch):
    """distance.py of google-research's cmmd, in float32 as it computes."""
    monkeypatch.setattr("persongen_jax.metrics.sets.mmd.ROWS", 7)
    x, y = (clouds(n, 24, seed) for n, seed in ((50, 1), (30, 9)))
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))

    def mean(a, b):
        squares = np.diag(a @ a.T)[:, None] + np.diag(b @ b.T)[None] - 2 * a @ b.T
        return np.exp(-squares / 200).mean(dtype=np.float32)

    wanted = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    found = 1000 * kernel_sums(gaussian, x.astype(float), y.astype(float)).biased()
    assert found == pytest.approx(wanted, rel=CLOSE) and found > 0.1


# ---- from pictures -----------------------------------------------------------------------------


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(("seed", "size"), [(3, (37, 53)), (4, (401, 350))])
def test_every_tools_resize(tool, seed, size):
    pixels = VARIANTS[tool](patterns(1, *size, seed)[0])
    assert pixels.shape == (299, 299, 3) and pixels.dtype == np.float32
    assert np.abs(pixels[::13, ::13] - GOLDEN[f"resize {tool} {size[0]}"]).max() < 1e-5


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    state = seeded(shapes_of("inception 2"))
    torch.save({key: torch.from_numpy(value) for key, value in state.items()}, path)
    return path


def of_pictures(real, made, people=4):
    """The first set's pictures are real; of ``people`` people in turn."""
    names = [f"p{i}" for i in range(people)]

    def owner(i):
        own = list(real[i::people])
        return Owner(names[i], lambda: own[:1], lambda limit=None: own[:limit])

    known = Known("mine", People(lambda: [owner(i) for i in range(people)]), People(lambda: []))
    return Generated(made, [names[i % people] for i in range(len(made))]), known


@pytest.mark.parametrize("tool", TOOLS)
def test_figures_of_pictures_as_the_tools_give_them(tool, inception):
    names = ("fid", "kid", "inception_score") if tool == "torch-fidelity" else ("fid",)
    n, m = (12, 10) if tool == "torch-fidelity" else (8, 8)
    config = {"metrics": names, "inception": str(inception), "fid_variant": tool}
    metrics = open_metrics(ConfigDict(config))
    # The tools' first set is what is scored alone, here the generated one.
    made, known = of_pictures(patterns(10, 80, 70, seed=2)[:m], patterns(12, 60, 48, seed=1)[:n])
    for metric in metrics:
        metric.prepare(known)
    found = measure_all(metrics, made, known)
    fid = found["fid"]
    assert fid["mean"] == pytest.approx(GOLDEN[f"pictures {tool} fid"], rel=CLOSE)
    assert fid["title"] == f"FID ({tool})" and fid["judge"] == str(inception)
    assert (fid["n"], fid["n_real"], fid["features"]) == (n, m, 128)
    assert 0 <= fid["low"] < fid["mean"] < fid["high"]
    assert f"of {n} generated and {m} real images: with 128 or fewer" in fid["note"]
    assert "read KID or CMMD" in fid["note"]
    if tool == "torch-fidelity":
        kid, score = found["kid"], found["inception_score"]
        assert kid["mean"] == pytest.approx(GOLDEN["pictures torch-fidelity kid"], rel=CLOSE)
        wanted = GOLDEN["pictures torch-fidelity kid std"]
        assert kid["subset_std"] == pytest.approx(wanted, rel=CLOSE) and kid["subset_size"] == 10
        assert kid["low"] < kid["mean"] < kid["high"] and kid["title"] == "KID (torch-fidelity)"
        wanted = GOLDEN["pictures torch-fidelity is"] - 1
        assert score["mean"] - 1 == pytest.approx(wanted, rel=CLOSE)
        assert score["low"] is None and score["n"] == 12 and score["splits"] == 10


def test_cmmd_of_pictures_as_by_transformers(tmp_path, capsys):
    model = write_tiny_clip(tmp_path / "clip")
    real, made = patterns(8, 50, 40, seed=1), patterns(6, 33, 64, seed=2)
    assert cmmd_preprocess(made[0], 32).shape == (32, 32, 3)

    def embed(images):
        """google-research's io_util.py, then transformers' network on CLIP's colours."""
        pixels = []
        for image in images:
            (h, w), side = image.shape[:2], min(image.shape[:2])
            left, top = (w - side) // 2, (h - side) // 2
            square = Image.fromarray(image).crop((left, top, left + side, top + side))
            pixels.append(np.asarray(square.resize((32, 32), Image.BICUBIC)) / 255)
        pixels = ((np.stack(pixels) - CLIP_MEAN) / CLIP_STD).transpose(0, 3, 1, 2)
        with torch.no_grad():
            pixels = torch.from_numpy(pixels.astype(np.float32))
            out = model.visual_projection(model.vision_model(pixels).pooler_output).numpy()
        return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(float)

    (metric,) = open_metrics(
        ConfigDict({"metrics": ("cmmd",), "clip": str(tmp_path / "clip"), "cmmd_clip": ""})
    )
    generated_, known = of_pictures(real, made, people=2)
    (found,) = measure_all([metric], generated_, known).values()
    wanted = 1000 * kernel_sums(gaussian, embed(made), embed(real)).biased()
    assert found["mean"] == pytest.approx(wanted, rel=CLOSE) and found["n_real"] == 8
    assert found["title"] == "CMMD (patches of 8 at 32 px)"
    assert found["judge"] == str(tmp_path / "clip") and len(metric.networks()) == 1
    other = ConfigDict({"metrics": ("cmmd",), "clip": "", "cmmd_clip": str(tmp_path / "clip")})
    assert open_metrics(other)[0](generated_, known).values == pytest.approx(found["mean"])


# ---- what is said ------------------------------------------------------------------------------


class Table:
    """Replaces an InceptionEmbedder: an image's number selects the row."""

    variant, networks = "clean", ()

    def __init__(self, rows):
        self.rows, self.calls = np.asarray(rows, np.float32), 0

    def outputs(self, images):
        self.calls += 1
        rows = self.rows[[int(image[0, 0, 0]) for image in images]]
        return rows, rows


def metrics_of(table, *classes):
    judges = SimpleNamespace(inception=InceptionJudge(table))
    return [cls(ConfigDict({"inception": "net.pth"}), judges) for cls in classes]


def test_one_image_of_either_kind_is_no_set(capsys):
    metrics = metrics_of(Table(clouds(5, 3, 0)), Fid, Kid, InceptionScore)
    known = known_set({"ann": [0]})
    assert measure_all(metrics, generated([1, 2], "ab"), known) == {}
    assert capsys.readouterr().out.splitlines() == [
        "in_train: FID (clean) gives no figure: 2 generated and 1 real images: give at least two "
        "of either",
        "in_train: KID (clean) gives no figure: 2 generated and 1 real images: give at least two "
        "of either",
        "in_train: Inception Score (clean) gives no figure: it needs 10 images, and there are 2; "
        "read KID or CMMD (kid, cmmd of --metrics)",
    ]


def test_too_few_images_are_said_with_the_figure():
    metrics = metrics_of(Table(clouds(40, 3, 0)), Fid, Kid, InceptionScore)
    for count, said in ((3, True), (20, False)):
        made = generated(range(20, 20 + count), ["ann"] * count)
        found = measure_all(metrics[:1], made, known_set({"ann": range(10)}))
        assert ("with 3 or fewer of either it depends" in found["fid"].get("note", "")) is said
    found = measure_all(metrics, made, known_set({"ann": range(10)}))
    assert found["kid"]["note"] == "subsets of 10 images: there are no 1000"
    assert found["inception_score"]["note"].startswith("of 20 images: it grows with their number")


def test_features_that_are_not_finite_are_an_error():
    rows = clouds(14, 3, 0)
    rows[1] = np.nan
    table = Table(rows)
    for metric in metrics_of(table, Fid, Kid):
        with pytest.raises(ValueError, match=r"1 of 2 of the real pictures .* net.pth are damaged"):
            metric.prepare(known_set({"ann": [0, 1]}))
        with pytest.raises(ValueError, match="1 of 2 of the generated images are not finite"):
            metric(generated([1, 2], "ab"), known_set({"ann": [3, 4]}))
    (score,) = metrics_of(table, InceptionScore)
    with pytest.raises(ValueError, match="1 of 12 of the generated images"):
        score(generated(range(12), ["ann"] * 12), known_set({}))


def test_the_network_runs_once_for_all_metrics():
    table = Table(clouds(40, 3, 0))
    metrics = metrics_of(table, Fid, Kid, InceptionScore)
    made = generated(range(20, 40), ["ann", "bob"] * 10)
    for _ in range(2):
        found = measure_all(metrics, made, known_set({"ann": range(10), "bob": range(10, 20)}))
    assert table.calls == 1 + 2 * 1 and list(found) == ["fid", "kid", "inception_score"]


def test_without_a_judge_or_with_a_wrong_name(tmp_path, inception, capsys):
    names = ("fid", "kid", "inception_score", "cmmd")
    assert open_metrics(ConfigDict({"metrics": names, "clip": "", "inception": ""})) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "FID, KID, Inception Score are not measured: config.inception names no file of FID's "
        "Inception"
    )
    assert lines[1].startswith("CMMD is not measured: config.clip")
    config = {"metrics": ("fid",), "inception": str(inception), "fid_variant": "tensorflow"}
    with pytest.raises(ValueError, match="config.fid_variant='tensorflow': there are clean"):
        open_metrics(ConfigDict(config))
    config |= {"inception": str(tmp_path / "no.pth"), "fid_variant": "clean"}
    with pytest.raises(WeightsError, match="mseitzer/pytorch-fid"):
        open_metrics(ConfigDict(config))
    assert [find_class(name).judge_key for name in names] == [*["inception"] * 3, "cmmd_clip"]
    assert issubclass(find_class("cmmd"), Cmmd)
