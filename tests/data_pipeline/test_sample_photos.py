import hashlib
import sys
from collections import Counter

import numpy as np
import pytest

from data_pipeline.examples.batches import batches
from data_pipeline.pictures.reading import load_image
from data_pipeline.records.manifest import read_manifest
from data_pipeline.sample_photos import Variant, main, write_sample_photos
from tests.data_pipeline.photographs import photograph_source

skimage_data = pytest.importorskip("skimage.data")


def digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_folder_is_a_manifest_that_trains(tmp_path, capsys, tokenizers):
    out = tmp_path / "sample"
    main(["--out", str(out), "--lfw", "3"])
    assert "ONE photograph per person" in capsys.readouterr().out
    np.testing.assert_array_equal(load_image(out / "astronaut.png"), skimage_data.astronaut())

    records = read_manifest(out)
    people = Counter(record.identity for record in records)
    assert people.keys() == {"astronaut", "lfw_000", "lfw_001", "lfw_002"}
    assert min(people.values()) >= 4
    for record in records:
        x0, y0, x1, y1 = record.face_box
        height, width = load_image(record.image).shape[:2]
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    source = photograph_source(records, tokenizers, seed=0, size=32, id_size=28)
    batch = next(batches(source, batch_size=4))
    assert (batch["face_box"][:, 2] > 0).all()


def test_same_bytes_every_time_and_again_over_itself(tmp_path):
    write_sample_photos(tmp_path / "a", lfw=2)
    write_sample_photos(tmp_path / "b", lfw=1)
    write_sample_photos(tmp_path / "b", lfw=2)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_refuses_a_strange_folder(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(SystemExit, match="^error: .*--force"):
        main(["--out", str(tmp_path)])
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    main(["--out", str(tmp_path), "--force"])
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("count", ["-1", "101"])
def test_lfw_has_a_hundred_faces(tmp_path, count):
    with pytest.raises(SystemExit, match="^error: .*between 0 and 100"):
        main(["--out", str(tmp_path / "x"), "--lfw", count])
    assert not (tmp_path / "x").exists()


def test_help_and_missing_library(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "--lfw" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(SystemExit, match=r"^error: .*persongen_jax\[first_light\]"):
        main(["--out", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


def test_a_variant_moves_the_box_with_the_face():
    image = np.zeros((50, 100, 3), np.uint8)
    image[20:30, 60:75] = 200
    for variant in (
        Variant("mirror", mirror=True),
        Variant("window", window=(0.2, 0.1, 0.9, 0.8)),
        Variant("both", window=(0.2, 0.1, 0.9, 0.8), mirror=True, exposure=0.5),
    ):
        changed, (x0, y0, x1, y1) = variant.apply(image, (60, 20, 75, 30))
        assert (changed[y0:y1, x0:x1] > 0).all() and (changed > 0).sum() == 10 * 15 * 3
    dark, _ = Variant("dark", exposure=0.5).apply(image, (60, 20, 75, 30))
    assert 0 < dark.max() < 200
