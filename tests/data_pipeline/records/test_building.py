"""A manifest from a folder of photographs, checked and read again."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipeline import manifest
from data_pipeline.faces import reading
from data_pipeline.pose.movenet import Pose
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
    assert names == ["1.png", "2.jpg", "3.jpg", "4.jpg", "upside down.png"]
    whole, close, turned, *_ = built.records
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
    said = "\n".join(built.lines())
    assert "perhaps not upright, better turned by half; look at: her twin/upside down.png" in said
    assert "5 images of 2 people (a folder for each person)" in said and "MIT" in said


def test_three_ways_to_the_same_records(photos, capsys):
    manifest.main([str(photos), "--class-word", "woman"])
    assert "wrote" in capsys.readouterr().out
    written = read_manifest(photos)
    assert [r.face_box for r in written] == [r.face_box for r in build_records(photos).records]
    with pytest.raises(SystemExit, match="there already; edit it"):
        manifest.main([str(photos)])
    manifest.main([str(photos), "--check"])
    assert "5 images of 2 people\n" in capsys.readouterr().out
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


def test_lines_of_images_that_are_called_alike(tmp_path):
    lines = []
    for person in ("ann", "bob"):
        (tmp_path / person).mkdir()
        for n in (1, 2):
            Image.new("RGB", (8, 8), (n, 0, len(person) + n)).save(tmp_path / person / f"{n}.png")
            entry = {"identity": person, "image": f"{person}/{n}.png", "caption": "a man img"}
            lines.append(json.dumps(entry))
    (tmp_path / "bob" / "1.png").write_bytes(b"broken")
    (tmp_path / "manifest.jsonl").write_text("\n".join([*lines, '{"identity": 3}']))
    with pytest.raises(ManifestError) as fault:
        check_manifest(tmp_path)
    said = str(fault.value)
    assert "line 5: missing or empty" in said  # together with those of the headers
    assert "1 images cannot be read" in said and "line 3: " in said and "line 1: " not in said


def test_a_link_that_leads_nowhere_and_keypoints(photos, monkeypatch):
    (photos / "eileen" / "gone.png").symlink_to(photos / "nowhere.png")
    pose = Pose(np.arange(34.0).reshape(17, 2), np.linspace(0, 1, 17))

    class Net:
        licence = "a net's terms"

        def __init__(self, path):
            assert path == "movenet.json"

        def __call__(self, images):
            return [pose]

    monkeypatch.setattr(reading, "MoveNet", Net)
    built = build_records(photos, pose="movenet.json", class_word="woman")
    assert built.left_out["cannot be read"] == ["eileen/gone.png", "eileen/broken.jpg"]
    assert "a net's terms" in built.lines()
    record = built.records[0]
    assert record.keypoints[0] == (10, 11) and len(record.keypoints) == 12
    assert record.visibility == tuple(score >= 0.3 for score in pose.scores[5:])


def test_options_without_effect(photos, capsys):
    with pytest.raises(SystemExit):
        manifest.main([str(photos), "--check", "--class-word", "man"])
    assert "--class-word has no effect with --check" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0 workers: at least one"):
        manifest.main([str(photos), "--workers", "0"])


def test_a_folder_in_which_nothing_can_be_used(tmp_path, originals):
    Image.fromarray(originals["cup"]).save(tmp_path / "cup.png")
    with pytest.raises(SystemExit, match="no image can be used; nothing was written"):
        manifest.main([str(tmp_path)])
    assert not (tmp_path / "manifest.jsonl").exists()
