"""An image under two names is never its own reference; replaced images are noticed."""

import json
import logging
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.examples.batches import batches
from data_pipeline.pictures import copies
from data_pipeline.pictures.copies import content_digest, near_copies, same_bytes
from data_pipeline.records import manifest
from data_pipeline.records.manifest import COPIES, ManifestError, read_manifest
from data_pipeline.records.sources import content_digests
from tests.data_pipeline.photographs import photograph_source, references_of, target_of


def copy_record(folder, name, of, **changes):
    """An additional line of the manifest: the file ``of`` again, as ``name``."""
    path = folder / "manifest.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    line = next(line for line in lines if line["image"] == of)
    shutil.copy(folder / of, folder / name)
    path.write_text("\n".join(map(json.dumps, [*lines, {**line, "image": name, **changes}])))


def test_a_copy_is_never_the_reference_of_its_original(folder, tokenizers, caplog):
    plain = read_manifest(folder)
    copy_record(folder, "again.png", "anna_0.png")
    copy_record(folder, "other words.png", "anna_1.png", caption="a woman img, seen anew")
    counts = Counter()
    records = read_manifest(folder, counts=counts)
    assert counts[COPIES] == 2 and "again.png is anna_0.png" in caplog.text
    # Equal captions are left out; other captions are additional captions of the same image.
    assert records[:-1] == plain and records[-1].caption == "a woman img, seen anew"
    assert records[-1].image == plain[1].image
    source = photograph_source(records, tokenizers)
    shown = 0
    for n in range(2 * len(records)):
        example = source.example(n)
        target = target_of(example, records)
        for reference in references_of(example, plain):
            shown += 1
            with open(target.image, "rb") as one, open(reference.image, "rb") as other:
                assert one.read() != other.read()
    assert shown > len(records)


def test_a_person_of_copies_alone_is_left_out(folder, caplog):
    for name in ("anna_1.png", "anna_0.png"):
        shutil.copy(folder / "bert_0.png", folder / name)
    assert {record.identity for record in read_manifest(folder)} == {"bert", "carl"}
    assert "1 identities with fewer than 2 images are left out: anna" in caplog.text
    for record in read_manifest(folder):  # bert's own and carl's, all of them one image
        if record.image != str(folder / "bert_0.png"):
            shutil.copy(folder / "bert_0.png", record.image)
    with pytest.raises(ManifestError, match="no identity has two images"):
        read_manifest(folder)


def test_the_same_picture_of_two_people_stays(folder):
    shutil.copy(folder / "bert_0.png", folder / "anna_0.png")
    assert len(read_manifest(folder)) == 12


def test_only_files_of_one_size_are_read(tmp_path, monkeypatch):

    files = [str(tmp_path / f"{i}") for i in range(5)]
    for file, content in zip(files, (b"a", b"bb", b"bb", b"cc", b"ddd"), strict=True):
        with open(file, "wb") as opened:
            opened.write(content)
    read, digest = [], copies._digest
    monkeypatch.setattr(copies, "_digest", lambda file: read.append(file) or digest(file))
    assert same_bytes(files) == {files[2]: files[1]} and read == files[1:4]


@pytest.mark.parametrize("kind", ["smaller", "jpeg", "turned", "grey alpha"])
def test_near_copies_are_warned_of(kind, folder, caplog):
    smooth = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    smooth = Image.fromarray(smooth).resize((240, 200), Image.Resampling.BICUBIC)
    smooth.save(folder / "anna_0.png")
    exif = Image.Exif()
    if kind == "smaller":
        smooth.resize((60, 50)).save(folder / "near.png")
    elif kind == "jpeg":
        smooth.save(folder / "near.png", "JPEG", quality=60)
    elif kind == "turned":  # stored on its side, with the orientation tag
        exif[0x0112] = 6
        smooth.transpose(Image.Transpose.ROTATE_90).save(folder / "near.png", exif=exif)
    else:
        smooth.convert("RGBA").save(folder / "near.png", compress_level=1)
    shutil.copy(folder / "near.png", folder / "anna_1.png")
    records = read_manifest(folder)
    assert len(records) == 12  # only a warning
    (said,) = (r.message for r in caplog.records if r.levelno == logging.WARNING)
    assert "1 images look like others" in said and "anna_1.png is anna_0.png" in said


def test_two_people_before_one_wall_are_no_near_copies(tmp_path):
    files = [str(tmp_path / f"{i}.png") for i in range(2)]
    for file, colours in zip(files, (("red", "tan"), ("navy", "brown")), strict=True):
        wall = Image.new("RGB", (160, 160), "white")
        wall.paste(colours[0], (60, 110, 100, 160))
        wall.paste(colours[1], (70, 70, 90, 110))
        wall.save(file)
    assert near_copies([files]) == {}


def test_many_images_skip_the_search_for_near_copies(folder, monkeypatch, caplog):
    monkeypatch.setattr(copies, "NEAR_LIMIT", 11)
    monkeypatch.setattr(manifest, "NEAR_LIMIT", 11)
    read_manifest(folder)
    assert "more than 11 images: copies in another size or format are not searched for" in (
        caplog.text
    )


def test_annotations_of_pixels_apply_to_every_copy(folder):
    """A copy without a face box gets it from the other; a copy with one gives it to the other."""
    plain = read_manifest(folder)
    boxed = next(record for record in plain if record.face_box)
    other = next(record for record in plain if not record.face_box)
    words = {"caption": "a woman img, seen anew"}
    copy_record(folder, "a.png", Path(boxed.image).name, face_box=None, **words)
    copy_record(folder, "b.png", Path(other.image).name, face_box=[1, 2, 30, 40], **words)
    found = read_manifest(folder)
    assert len(found) == len(plain) + 2
    for record in found:
        if record.image == boxed.image:
            assert record.face_box == boxed.face_box
        if record.image == other.image:
            assert record.face_box == (1, 2, 30, 40)


def test_different_pictures_are_no_near_copies(folder, records, caplog):
    read_manifest(folder)
    assert not caplog.records
    files = [record.image for record in records]
    assert near_copies([files]) == {}
    assert near_copies([[*files, str(folder / "absent.png")]]) == {}


def test_a_mark_depends_only_on_the_content(folder, tmp_path):
    file = folder / "anna_0.png"
    before = content_digest(str(file))
    moved = tmp_path / "elsewhere.png"
    shutil.copy(file, moved)
    os.utime(moved, (1, 1))
    assert content_digest(str(moved)) == before
    for kind in ("png", "bmp"):  # of equal size whatever they show
        files = [str(tmp_path / f"{i}.{kind}") for i in range(2)]
        for i, name in enumerate(files):
            Image.new("RGB", (8, 8), (i, i, i)).save(name)
        assert content_digest(files[0]) != content_digest(files[1])
    pixels = np.random.default_rng(0).integers(0, 256, (200, 100, 3), np.uint8)
    pixels[:20] = 255  # a BMP ends with its first rows
    marks = set()
    for lower in (pixels, 255 - pixels):
        lower[:20] = 255
        Image.fromarray(lower).save(tmp_path / "wall.bmp")
        marks.add(content_digest(str(tmp_path / "wall.bmp")))
    assert len(marks) == 2


def test_rewritten_shards_with_other_images_have_another_mark(folder, records, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from data_pipeline.shards import write_shards

    marks = []
    for place in ("a", "b", "c"):
        write_shards(folder, tmp_path / place, shards=2)
        marks.append(content_digests(tmp_path / place)("anna_0.png"))
        if place == "b":
            pixels = 255 - np.asarray(Image.open(records[3].image))
            Image.fromarray(pixels).save(records[3].image)
    assert marks[0] == marks[1] != marks[2]
    (tmp_path / "a" / "index.jsonl").unlink()  # as other programs write them: pieces of the files
    assert content_digests(tmp_path / "a")("anna_0.png") != marks[0]


def test_pictures_replaced_under_their_names_are_noticed_at_resume(
    folder, records, tokenizers, caplog
):
    def stream(records=records):
        source = photograph_source(records, tokenizers, mark=content_digests(folder))
        return batches(source, batch_size=4)

    state = json.loads(json.dumps(stream().state()))
    stream().check(state)
    assert not caplog.records
    Image.new("RGB", (50, 50), "red").save(records[2].image)
    stream().check(state)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("1 images have changed under the same names since the run stopped")
    assert records[2].image in said and "restore the old ones" in said
    del state["pictures"]
    caplog.clear()
    stream().check(state)  # of a run without marks
    assert not caplog.records


def test_of_very_many_pictures_one_mark_is_kept(records, tokenizers, monkeypatch, caplog):
    from data_pipeline.examples import source

    monkeypatch.setattr(source, "NAMED_PICTURES", 3)

    def stream():
        return batches(photograph_source(records, tokenizers, mark=content_digest), batch_size=4)

    state = stream().state()
    assert len(state["pictures"]) == 16
    stream().check(state)
    assert not caplog.records
    Image.new("RGB", (50, 50), "red").save(records[2].image)
    stream().check(state)
    assert "12 images have changed" in caplog.text
