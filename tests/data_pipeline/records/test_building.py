"""A manifest from a folder of photographs, checked and read again."""

import numpy as np
import pytest
from PIL import Image

from data_pipeline import manifest
from data_pipeline.records.building import build_records
from data_pipeline.records.checking import check_manifest
from data_pipeline.records.manifest import ManifestError, read_manifest
from data_pipeline.records.sources import open_records

skimage_data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def originals():
    her = skimage_data.astronaut()
    close = her[20:220, 125:325]
    return {"her": her, "close": close, "mirror": her[:, ::-1], "cup": skimage_data.coffee()}


@pytest.fixture
def photos(tmp_path, originals):
    """What people have: a copy, a broken file, one on its side, one without a face."""
    root = tmp_path / "photos"
    (root / "eileen").mkdir(parents=True)
    (root / "her twin").mkdir()

    def save(name, image, **options):
        Image.fromarray(np.ascontiguousarray(image)).save(root / name, **options)

    save("eileen/1.png", originals["her"])
    save("eileen/2.jpg", originals["close"], quality=95)
    save("eileen/on its side.png", np.rot90(originals["her"]))
    save("eileen/cup.png", originals["cup"])
    (root / "eileen/broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (root / "eileen/copy.png").write_bytes((root / "eileen/1.png").read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    save("her twin/3.jpg", np.rot90(originals["mirror"]), exif=exif, quality=95)
    save("her twin/4.jpg", originals["mirror"][:400], quality=95)
    save("her twin/upside down.png", originals["her"][::-1, ::-1])
    return root


def test_what_is_found_and_what_is_left_out(photos):
    built = build_records(photos, class_word="woman", workers=1)
    names = [record.image.rsplit("/", 1)[-1] for record in built.records]
    assert names == ["1.png", "2.jpg", "3.jpg", "4.jpg"]
    whole, close, turned, _ = built.records
    assert whole.identity == "eileen" and turned.identity == "her twin"
    assert whole.caption == "a photo of a woman img" and whole.class_word == "woman"
    assert close.caption == "a close-up photo of a woman img"
    for record in (whole, turned):
        x0, y0, x1, y1 = record.face_box
        middle = np.mean(record.landmarks, axis=0)
        assert x0 < middle[0] < x1 and y0 < middle[1] < y1 and 60 < x1 - x0 < 140
    left = built.left_out
    assert left["cannot be read"] == ["eileen/broken.jpg"]
    assert left["a copy of eileen/1.png"] == ["eileen/copy.png"]
    assert left["no face found"] == ["eileen/cup.png"]
    assert left["not upright, turn it clockwise"] == ["eileen/on its side.png"]
    assert left["not upright, turn it by half"] == ["her twin/upside down.png"]
    said = "\n".join(built.lines())
    assert "4 images of 2 people (a folder for each person)" in said and "MIT" in said


def test_three_ways_to_the_same_records(photos, capsys):
    manifest.main([str(photos), "--class-word", "woman"])
    assert "wrote" in capsys.readouterr().out
    written = read_manifest(photos)
    assert [r.face_box for r in written] == [r.face_box for r in build_records(photos).records]
    with pytest.raises(SystemExit, match="there already; edit it"):
        manifest.main([str(photos)])
    manifest.main([str(photos), "--check"])
    assert "4 images of 2 people\n" in capsys.readouterr().out
    # Without a manifest opening the folder makes it.
    (photos / "manifest.jsonl").unlink()
    records, _ = open_records(str(photos))
    said = capsys.readouterr().out
    assert "has no manifest.jsonl; making it" in said and "left out, no face found" in said
    assert [r.face_box for r in records] == [r.face_box for r in written]
    assert records[0].caption == "a photo of a person img"


def test_faces_may_be_kept_out_of_it(photos):
    built = build_records(photos, keep_faceless=True)
    (cup,) = [record for record in built.records if record.image.endswith("cup.png")]
    assert cup.face_box is None and cup.landmarks is None


def test_faults_of_pictures_are_listed_together_with_their_lines(photos):
    manifest.main([str(photos)])
    for name in ("1.png", "2.jpg"):
        (photos / "eileen" / name).write_bytes(name.encode())
    with pytest.raises(ManifestError) as fault:
        check_manifest(photos)
    said = str(fault.value)
    assert "2 images cannot be read" in said and "--replace" in said
    assert "line 1:" in said and "line 2:" in said and "2.jpg" in said


def test_a_folder_in_which_nothing_can_be_used(tmp_path, originals):
    Image.fromarray(originals["cup"]).save(tmp_path / "cup.png")
    with pytest.raises(SystemExit, match="no image can be used; nothing was written"):
        manifest.main([str(tmp_path)])
    assert not (tmp_path / "manifest.jsonl").exists()
