"""The command on folders of images: figures by the miniature's judges, and faults in one line."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from data_pipeline.people import write_people
from persongen_jax import evaluate
from persongen_jax.evaluation.folders.scoring import short_names
from persongen_jax.metrics.base import Metric, Values
from persongen_jax.metrics.clip_score import ClipScore
from persongen_jax.miniature.__main__ import ASSETS
from tests.evaluation.folders.drawn import draw
from tests.helpers.encoders.judge_files import seeded, shapes_of


class Grey(Metric):
    """The mean of all pixels, NaN for black; needs no judge."""

    name, title, form = "grey", "grey", "{:.1f}"

    def __call__(self, generated, known):
        means = np.array([float(image.mean()) for image in generated.images])
        return Values(np.where(means > 0, means, np.nan))


class Broken(Grey):
    def __call__(self, generated, known):
        return Values(np.full(len(generated.images), np.inf))


HERE = "tests.evaluation.test_of_folders:"
PROMPTS = ["a person in a city", "a person on a beach"]
FACES = str(ASSETS / "face_net")


def score(folders, out, *words, cache=None, json_file=None):
    options = ["--out", str(out), "--cache", str(cache or out / "cache"), *map(str, words)]
    evaluate.main(["--images", *map(str, folders), *options])
    return json.loads((json_file or out / "scores.json").read_text())


def said(folders, out, *words):
    with pytest.raises(SystemExit) as caught:
        score(folders, out, *words)
    assert "\n" not in caught.value.code
    return caught.value.code


def grey(*words):
    return ["--metrics", f"{HERE}Grey", *words]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three drawn people; "generated" are other pictures of them, of two sizes, by two tools."""
    folder = tmp_path_factory.mktemp("world")
    records = write_people(folder / "people", identities=3, pictures=5, split="in_train", size=48)
    for i, record in enumerate(records):
        who, picture = divmod(i, 5)
        name, image = f"p{who}", Image.open(record.image)
        if picture == 0:
            place = folder / "references" / name / "0.png"
        elif picture < 3:
            place = folder / "a" / name / f"{picture - 1:03d}_1.png"
        else:
            place, image = folder / "b" / name / f"{picture - 3:03d}_1.png", image.resize((60, 48))
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place)
    (folder / "b" / "p0" / "000_1.png").write_bytes(b"no image")
    shutil.rmtree(folder / "references" / "p2")
    for tool in "ab":
        (folder / tool / "prompts.json").write_text(json.dumps(PROMPTS))
    # The same recogniser under another name, as a second one.
    shutil.copytree(FACES, folder / "nets" / "face_net")
    shutil.copytree(ASSETS / "judges" / "face_detector", folder / "nets" / "face_detector")
    return folder


@pytest.fixture(scope="module")
def scored(world):
    judges = ["--encoder", f"clip={ASSETS / 'clip'}", "--recogniser", FACES]
    judges += ["--recogniser", world / "nets" / "face_net"]
    names = ["clip_t", "clip_i", "face_sim", "detection_rate", "frechet_clip", "dino_i"]
    out = world / "out"
    known = ["--references", world / "references", "--metrics", *names]
    return out, score([world / "a", f"second={world / 'b'}"], out, *known, *judges)


def test_every_metric_of_both_folders(scored, world):
    found = scored[1]["folders"]
    first, second = found["a"], found["second"]
    titles = [m["title"] for m in first["metrics"].values()]
    assert titles[:2] == ["CLIP-T", "CLIP-I"] and titles[-1] == "Fréchet (CLIP)"
    assert "Face-Sim (assets/face_net)" in titles and "Face-Sim (nets/face_net)" in titles
    faces = [m for name, m in first["metrics"].items() if name.startswith("face_sim")]
    assert faces[0]["value"] == pytest.approx(faces[1]["value"])  # one recogniser, twice
    assert faces[0]["n"] == 4 and faces[0]["missing"] == 2  # p2 has no reference
    assert first["metrics"]["clip_t"]["n"] == 6 and second["metrics"]["clip_t"]["n"] == 5
    assert list(second["excluded"]) == ["p0/000_1.png"]
    assert "cannot be decoded" in second["excluded"]["p0/000_1.png"]
    assert any("no reference of p2 (2 images)" in note for note in first["notes"])
    assert any("DINO-I is not measured" in note for note in scored[1]["notes"])
    assert any("these folders have 6, 5: its figures do" in note for note in scored[1]["notes"])
    images = [np.asarray(Image.open(path)) for path in sorted((world / "a").glob("*/*.png"))]
    wanted = ClipScore(ASSETS / "clip").score(images, 3 * PROMPTS).mean()
    assert first["metrics"]["clip_t"]["value"] == pytest.approx(float(wanted), abs=1e-4)


def test_differences_and_how_many_would_settle_them(scored):
    rows = {row["metric"]: row for row in scored[1]["differences"]}
    assert "frechet_clip" not in rows
    row = rows["clip_t"]
    assert (row["first"], row["second"], row["n"], row["people"]) == ("a", "second", 5, 3)
    assert row["low"] < row["difference"] < row["high"]
    assert row["people_to_settle"] is None or row["people_to_settle"] > 1
    assert row["left_out"] == "1 of 6 not compared: 1 only in the first"


def test_all_files_agree(scored):
    out, found = scored
    with (out / "scores.csv").open(newline="") as file:
        rows = {(row["folder"], row["metric"]): row for row in csv.DictReader(file)}
    for folder, own in found["folders"].items():
        for name, measure in own["metrics"].items():
            assert float(rows[folder, name]["value"]) == measure["value"]
    with (out / "images.csv").open(newline="") as file:
        images = list(csv.DictReader(file))
    own = [float(row["clip_t"]) for row in images if row["folder"] == "a"]
    assert np.mean(own) == pytest.approx(found["folders"]["a"]["metrics"]["clip_t"]["value"])
    assert [row["file"] for row in images if row["excluded"]] == ["p0/000_1.png"]
    cell = f"{found['folders']['a']['metrics']['clip_t']['value']:.2f}"
    for name in ("scores.md", "scores.html"):
        text = (out / name).read_text()
        assert cell in text and "second" in text and "p0/000_1.png" in text
    assert (out / "differences.csv").is_file()


def test_features_are_computed_once(scored, world, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("the features are kept")

    monkeypatch.setattr(ClipScore, "image_features", never)
    words = ["--references", world / "references", "--encoder", f"clip={ASSETS / 'clip'}"]
    cache = scored[0] / "cache"
    found = score([world / "a"], tmp_path, *words, "--metrics", "clip_t", cache=cache)
    assert found["metrics"]["clip_t"] == scored[1]["folders"]["a"]["metrics"]["clip_t"]
    assert found["images"] == 6 and found["people"] == {"p0": 2, "p1": 2, "p2": 2}


@pytest.fixture(scope="module")
def mixed(world, tmp_path_factory):
    """Images of two people, 48 x 48 and 60 x 48; and the options of judges with random weights."""
    folder = tmp_path_factory.mktemp("mixed")
    for place in [*(world / "a").glob("p[01]/*.png"), *(world / "b").glob("p[01]/001_1.png")]:
        who, tool = place.parent.name, place.parents[1].name
        (folder / "images" / who).mkdir(parents=True, exist_ok=True)
        shutil.copy(place, folder / "images" / who / f"{tool}{place.name}")
    words = ["--encoder", f"cmmd_clip={ASSETS / 'clip'}", "--recogniser", FACES]
    for key, shapes in (("inception", "inception 2"), ("lpips", "lpips alex 1")):
        save_file(seeded(shapes_of(shapes)), folder / f"{key}.safetensors")
        words += ["--encoder", f"{key}={folder / key}.safetensors"]
    known = ["--references", world / "references", "--real", world / "a"]
    return folder / "images", [*words, *known, "--metrics"]


def test_fid_and_diversity_of_images_of_two_sizes(mixed, tmp_path):
    folder, words = mixed
    found = score([folder], tmp_path, *words, "image_diversity", "fid")["metrics"]
    fid, diversity = found["fid"], found["image_diversity"]
    assert (fid["n"], fid["n_real"], fid["title"]) == (6, 6, "FID (clean)")
    assert fid["low"] <= fid["value"] <= fid["high"] and np.isfinite(fid["value"])
    assert diversity["n"] == 6 and diversity["value"] > 0 and diversity["net"] == "alex"


@pytest.mark.slow
def test_every_judge_of_sets_and_faces_by_another_resize(mixed, tmp_path):
    folder, words = mixed
    names = ["fid", "kid", "cmmd", "face_diversity", "face_sharpness"]
    first, again, other = (
        score([folder], tmp_path, *words, *names, "--fid-variant", tool)["metrics"]
        for tool in ("clean", "clean", "pytorch-fid")
    )
    assert list(first) == names and again == first
    assert first["face_diversity"]["value"] > 0 and first["face_sharpness"]["value"] > 0
    assert other["fid"]["title"] == "FID (pytorch-fid)" and other["cmmd"] == first["cmmd"]
    assert other["fid"]["value"] != first["fid"]["value"]


# ---- without a judge ---------------------------------------------------------------------------


def test_one_image_of_one_person(tmp_path):
    draw(tmp_path / "a" / "ann" / "000_1.png", 50)
    file = tmp_path / "x" / "y.json"
    score([tmp_path / "a"], tmp_path / "out", *grey("--json", file), json_file=file)
    found = json.loads(file.read_text())["metrics"]["grey"]
    assert (found["value"], found["n"], found["low"], found["high"]) == (50, 1, None, None)
    assert found["reason"] == "one person says nothing about others"
    assert "one person says nothing" in (tmp_path / "out" / "scores.md").read_text()


def test_images_that_a_metric_cannot_measure_are_listed(tmp_path, capsys):
    for name, level in {"ann/0_1": 0, "ann/0_2": 30, "bob/0_1": 90, "bob/0_2": 90}.items():
        draw(tmp_path / "a" / f"{name}.png", level)
    found = score([tmp_path / "a"], tmp_path / "out", *grey())["metrics"]["grey"]
    assert (found["value"], found["n"], found["missing"]) == (70, 3, 1)
    shown = capsys.readouterr().out
    assert found["not_measured"] == ["ann/0_1.png"]
    assert "- grey: 1 of 4 images not measured: ann/0_1.png" in shown
    assert "- 1 images have the pixels of another one of the folder" in shown
    assert "grey: not measured" in (tmp_path / "out" / "scores.html").read_text()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--encoder", "klip=x"], "--encoder klip=x: give NAME=FILE; names are clip, "),
        (["--encoder", "clip"], "--encoder clip: give NAME=FILE"),
        (["--encoder", "clip=x", "--encoder", "clip=y"], "--encoder clip: given twice"),
        (["--recogniser", "x", "--recogniser", "x"], "--recogniser x: given twice"),
        (["--recogniser", "x", "--encoder", "face_net=y"], "give it in one place"),
        (["--encoder", "clip=/nowhere", "--metrics", "clip_t"], "/nowhere"),
        (["--metrics", "klip_t"], "there is no metric 'klip_t'"),
        (["--encoder", "inception=/nowhere", "--metrics", "fid"], "/nowhere: "),
        (["--metrics", "fid"], "FID is not measured: .*--encoder inception=FILE"),
        (["--metrics", "clip_t"], "error: CLIP-T is not measured: .*--encoder clip=FILE"),
        (["--metrics", f"{HERE}Broken"], "grey: 1 of 1 values are not finite"),
        (["--references", "/nowhere"], "/nowhere: no such folder"),
        (["--real", "people:nobody"], "split 'nobody' is unknown"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, wanted, tmp_path):
    draw(tmp_path / "a" / "ann" / "000_1.png", 50)
    words = words if "--metrics" in words else [*grey(), *words]
    assert re.search(wanted, said([tmp_path / "a"], tmp_path / "out", *words))


def test_folders_that_do_not_fit(tmp_path):
    for file in ("a/ann/0_1.png", "b/bob/0_1.png", "other/eve/1.png", "c/a/ann/0_1.png"):
        draw(tmp_path / file, 50)
    out = tmp_path / "out"
    assert "have no people in common" in said([tmp_path / "a", tmp_path / "b"], out, *grey())
    same = [tmp_path / "a", tmp_path / "c" / "a"]
    assert "two folders are called a: give NAME=DIR each" in said(same, out, *grey())
    others = ["--references", tmp_path / "other"]
    assert "none of its people (eve) has an image in a" in said(
        [tmp_path / "a"], out, *grey(*others)
    )
    (tmp_path / "b" / "bob" / "0_1.png").write_bytes(b"")
    assert "no image can be decoded" in said([tmp_path / "b"], out, *grey())


def test_options_of_other_forms_are_named(tmp_path, capsys):
    draw(tmp_path / "a" / "ann" / "000_1.png", 50)
    score([tmp_path / "a"], tmp_path / "out", *grey("--steps", "3", "--clip", "x"))
    assert "warning: --clip, --steps: no effect with --images, which" in capsys.readouterr().err


def test_recognisers_are_told_apart():
    assert short_names(["a/x.onnx", "b/y.pth", "sface"]) == ["x", "y", "sface"]
    assert short_names(["a/net.onnx", "b/net.onnx"]) == ["a/net", "b/net"]
    assert short_names([]) == []
