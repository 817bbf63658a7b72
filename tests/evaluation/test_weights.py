"""Published weight files side by side: the same noise, people and judges."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from PIL import Image

from persongen_jax import evaluate
from persongen_jax.evaluation import of_weights
from persongen_jax.evaluation.benchmarks import BENCHMARKS
from persongen_jax.evaluation.of_weights import check_names, differences, parse_weights, sets_of
from persongen_jax.evaluation.prompts import open_prompts
from persongen_jax.metrics.base import Metric, Values
from persongen_jax.miniature.__main__ import ASSETS
from tests.helpers.ip_adapters import write_ip_adapter
from tests.helpers.photomaker_files import write_random_photomaker

SET = "people:out_of_train?identities=2&pictures=3&size=48"
PROMPTS = [{"general": "a photo of a {word} img"}, {"general": "a {word} img", "body": "{his} hat"}]


class Brightness(Metric):
    """Mean of all pixels."""

    name, title = "brightness", "brightness"

    def __call__(self, generated, known):
        return Values(generated.images.mean((1, 2, 3)) / 255)


@pytest.fixture(scope="module")
def files(small_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_random_photomaker(small_base, folder / "photomaker.safetensors")
    shutil.copy(folder / "photomaker.safetensors", folder / "copy.safetensors")
    unet = UNet2DConditionModel.from_pretrained(small_base / "unet")
    features = json.loads((small_base / "image_encoder" / "config.json").read_text())
    for kind, width in (("base", features["projection_dim"]), ("faceid", 128)):
        write_ip_adapter(folder / f"{kind}.bin", unet, kind, width)
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    return folder


def options(base, files, *names):
    weights = [word for name in names for word in ("--weights", f"{name}={files / name}")]
    return [
        *weights,
        *("--base", str(base), "--benchmark", "thesis", "--people", SET),
        *("--prompts", str(files / "prompts.json"), "--size", "64", "--images-each", "1"),
        *("--steps", "2", "--merge-step", "0", "--batch", "4"),
        *("--metrics", f"{__name__}:Brightness"),
    ]


@pytest.mark.slow
def test_files_generate_the_same_people_from_the_same_noise(
    small_base, files, tmp_path, capsys, monkeypatch
):
    names = ["photomaker.safetensors", "copy.safetensors", "base.bin"]
    command = [*options(small_base, files, *names), "--out", str(tmp_path)]
    stale = [tmp_path / "base.bin" / kind / "in_train" for kind in ("images", "references")]
    for old in stale:
        old.mkdir(parents=True)
    (tmp_path / "base.bin" / "settings.json").write_text("{}")
    (tmp_path / "sheet_in_train.png").touch()
    evaluate.main(command)
    assert not any(old.exists() for old in [*stale, tmp_path / "sheet_in_train.png"])
    shown = capsys.readouterr().out
    joint = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["name"] for row in joint] == names
    first, copy, other = (row["metrics"]["brightness"]["mean"] for row in joint)
    assert first == copy != other
    for text in (shown, (tmp_path / "comparison.md").read_text()):
        assert all(f"| {name} |" in text for name in names)
        assert "size 64 for 512" in text and "Of the benchmark's 3 sets: 1." in text
        assert "people: 2 on out-of-train." in text

    folder = tmp_path / "base.bin" / "images" / "out_of_train"
    lines = [json.loads(text) for text in (folder / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and {line["seed"] for line in lines} == {0}
    assert all(Image.open(folder / line["file_name"]).size == (64, 64) for line in lines)
    assert len({line["person"] for line in lines}) == 2
    assert not any("img" in line["prompt"] for line in lines)
    for person in {line["person"] for line in lines}:
        assert (tmp_path / "base.bin" / "references" / "out_of_train" / person / "0.png").exists()
    assert np.asarray(Image.open(tmp_path / "sheet_out_of_train.png")).shape[1] > 4 * 128

    def never(*_):
        raise AssertionError("generated again")

    monkeypatch.setattr(of_weights, "open_system", never)
    evaluate.main(command)
    assert "copy.safetensors: measured before" in capsys.readouterr().out
    for change in (["--guidance", "3"], ["--no-mark"]):  # other settings
        with pytest.raises(AssertionError, match="generated again"):
            evaluate.main([*command, *change])
    os.utime(small_base / "unet" / "config.json")
    with pytest.raises(AssertionError, match="generated again"):  # perhaps another base
        evaluate.main(command)
    (tmp_path / names[0] / "settings.json").unlink()
    with pytest.raises(SystemExit, match="has files of something else; give another --out"):
        evaluate.main(command)
    assert (folder / "metadata.jsonl").exists()


def test_only_a_benchmark_of_several_sets_lacks_some():
    for name, wanted in (("thesis", ["Of the benchmark's 3 sets: 1."]), ("bolid", [])):
        rows = [{"set": "out_of_domain", "people": 10}]
        assert differences(name, BENCHMARKS[name], rows) == wanted
    rows = [{"set": "out_of_domain", "people": 25}]
    assert differences("photomaker", BENCHMARKS["photomaker"], rows) == []


def test_people_of_one_folder_name_are_refused():
    two = [SimpleNamespace(identity=name) for name in ("a/b", "a_b")]
    with pytest.raises(ValueError, match="'a_b' and 'a/b' would both be the folder a_b"):
        check_names(SimpleNamespace(people={"in_train": two}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--weights", "copy"], "give NAME=FILE"),
        (["--weights", "a/b=x"], "none for a folder"),
        (["--weights", "x=/nowhere"], "/nowhere: no such file"),
        (["--people", ""], "nobody to generate; give --people"),
        (["--base", ""], "give --base DIR and --benchmark"),
    ],
)
def test_what_cannot_be_compared_is_named(change, named, small_base, files, tmp_path):
    command = [*options(small_base, files, "copy.safetensors"), "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        evaluate.main([*command, *change])
    assert caught.value.code.startswith("error: ") and named in caught.value.code


def test_a_file_of_another_method_than_its_name_is_refused(small_base, files):
    command = options(small_base, files)
    for item, named in (
        (f"photomaker={files / 'base.bin'}", "is an IP-Adapter file, not one for 'photomaker'"),
        (f"mine={files / 'faceid.bin'}", "face_encoder is empty: FaceID reads"),
        (f"instantid={files / 'base.bin'}", "InstantID needs its IdentityNet"),
    ):
        with pytest.raises(SystemExit) as caught:
            evaluate.main(["--weights", item, *command])
        assert named in caught.value.code


@pytest.mark.slow
def test_faceid_reads_the_peoples_aligned_faces(small_base, files, tmp_path):
    command = [*options(small_base, files, "faceid.bin"), "--out", str(tmp_path)]
    evaluate.main([*command, "--face-encoder", str(ASSETS / "face_net")])
    (row,) = json.loads((tmp_path / "comparison.json").read_text())
    assert row["name"] == "faceid.bin" and row["metrics"]["brightness"]["mean"] > 0
    assert json.loads((tmp_path / "faceid.bin" / "settings.json").read_text())["face_encoder"]


def test_people_are_one_folder_or_three(tmp_path):
    (tmp_path / "ann").mkdir()
    assert sets_of(str(tmp_path)) == {"validate_out_of_domain": str(tmp_path)}
    (tmp_path / "in_train").mkdir()
    with pytest.raises(ValueError, match="has in_train and also ann"):
        sets_of(str(tmp_path))
    (tmp_path / "ann").rmdir()
    (tmp_path / "out_of_domain").mkdir()
    assert list(sets_of(str(tmp_path))) == ["validate_in_train", "validate_out_of_domain"]
    assert list(sets_of(SET)) == ["validate_out_of_train"]


def test_names_are_of_one_file_each(files):
    file = files / "base.bin"
    assert parse_weights([f"a={file}", f"b={file}"]) == {"a": file, "b": file}
    with pytest.raises(ValueError, match="the name is taken"):
        parse_weights([f"a={file}", f"a={file}"])
    with pytest.raises(ValueError, match="is a folder; a training run is evaluated with --run"):
        parse_weights([f"a={files}"])


def test_photomakers_prompts_are_forty_and_mark_the_class_word():
    prompts = open_prompts("photomaker", "sks")
    assert len({prompt.fill("woman").whole("sks") for prompt in prompts}) == 40
    for prompt in prompts:
        filled = prompt.fill("woman")
        assert "woman sks" in filled.general and "img" not in filled.whole("sks")
