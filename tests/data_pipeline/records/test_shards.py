"""Shards hold what the folder holds, give the same batches, and are written atomically."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PillowImage

from data_pipeline.examples.batches import batches, tf_batches
from data_pipeline.examples.conditions import Text
from data_pipeline.examples.fields import Image, flatten, unflatten
from data_pipeline.examples.source import ExampleSource
from data_pipeline.examples.spatial import Weight
from data_pipeline.pictures.reading import load_image
from data_pipeline.records.manifest import read_manifest, write_manifest
from data_pipeline.records.shard_reading import INDEX, ShardError, open_shards
from data_pipeline.records.sources import open_records
from data_pipeline.shards import main, write_shards
from tests.data_pipeline.photographs import assert_same, photograph_source, take


@pytest.fixture
def photographs(folder):
    """The folder, one of its images a turned JPEG, and one with all optional data."""
    records = read_manifest(folder)
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    turned = folder / "turned.jpg"
    PillowImage.fromarray(load_image(records[2].image)).save(turned, exif=exif)
    records[2] = replace(records[2], image=str(turned))
    records[5] = replace(
        records[5],
        class_word="man",
        body="in a\u2028red coat\x85",
        landmarks=tuple((10.25 * i, 3) for i in range(5)),
        keypoints=tuple((i, 40 - i) for i in range(12)),
        visibility=(True, True, False) * 4,
        original_size=(200, 300),
        crop=(100, 50, 190, 140),
    )
    write_manifest(folder, records)
    return folder


@pytest.fixture
def shards(photographs, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "shards"
    counts = write_shards(photographs, out, shards=3)
    assert +counts == {"pictures": 12, "people": 3, "shards": 3}
    return out


def test_records_and_pictures_are_those_of_the_folder(photographs, shards):
    records, read_image = open_records(shards)
    for ours, theirs in zip(records, read_manifest(photographs), strict=True):
        image = load_image(theirs.image)
        np.testing.assert_array_equal(read_image(ours.image), image)
        assert theirs.image == str(photographs / ours.image)
        height, width = theirs.original_size or image.shape[:2]
        known = {
            "class_word": "man",
            "original_size": (height, width),
            "crop": theirs.crop or (0, 0, width, height),
        }
        assert ours == replace(theirs, image=ours.image, **known)


def test_tfds_reads_files_as_they_were_and_absence_as_absence(photographs, shards):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(shards)
    undecoded = {"image": tfds.decode.SkipDecoding()}
    rows = list(builder.as_data_source("train", decoders=undecoded))
    assert builder.name == "identity_shards" and len(list(shards.glob("*array_record*"))) == 3
    for row, record in zip(rows, read_manifest(photographs), strict=True):
        with open(record.image, "rb") as file:
            assert row["image"] == file.read()
        assert row["caption"].decode() == record.caption
        for name in ("face_box", "landmarks", "keypoints"):
            expected = getattr(record, name)
            if expected is None:
                assert np.isnan(row[name]).all()
            else:
                np.testing.assert_array_equal(row[name], np.float32(expected))
    np.testing.assert_array_equal(rows[5]["visibility"], [True, True, False] * 4)
    np.testing.assert_array_equal(rows[5]["original_size"], [200, 300])
    np.testing.assert_array_equal(rows[5]["crop"], [100, 50, 190, 140])
    assert not rows[0]["visibility"].any() and rows[0]["body"] == b""


def test_features_are_in_one_order(shards):
    """A protobuf map alone has another order in every process, and so the files other bytes."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from tensorflow_datasets.proto import tf_example_pb2

    raw = list(ArrayRecordDataSource(sorted(map(str, shards.glob("*.array_record*")))))
    assert len(raw) == 12
    for data in raw:
        read = tf_example_pb2.Example.FromString(data)
        assert data == read.SerializeToString(deterministic=True)


def test_the_same_batches_from_folder_and_shards_with_and_without_tf_data(
    photographs, shards, tokenizers
):
    streams = ("text", "background")
    folder = photograph_source(read_manifest(photographs), tokenizers, streams=streams)
    expected = take(batches(folder, batch_size=4), 6)
    records, read_image = open_records(shards)

    def check(make, wanted, **place):
        options = {"streams": streams, "read_image": read_image}
        source = photograph_source(records, tokenizers, **options)
        made = take(make(source, batch_size=4, **place), len(wanted))
        for batch, other in zip(made, wanted, strict=True):
            assert_same(batch, other)
        return source

    check(batches, expected)
    check(tf_batches, expected)
    source = check(tf_batches, expected[4:], start_step=4)
    halves = [
        take(tf_batches(source, batch_size=4, process_index=i, process_count=2), 3)
        for i in range(2)
    ]
    for step in range(3):
        one, other = flatten(halves[0][step]), flatten(halves[1][step])
        assert not np.array_equal(one["pixel_values"], other["pixel_values"])
        joined = {name: np.concatenate([one[name], other[name]]) for name in one}
        assert_same(unflatten(joined), expected[step])
        assert joined["input_ids/text"].shape == (4, 2, 77)


def test_further_keys_of_the_manifest_are_kept(photographs, tmp_path, tokenizers):
    """In JSON's types, for the fields that read them."""
    say = {"weight": 0.5, "hair": "r\u00f6t\u2028lich", "tags": ["a", [1, 2]], "extra": {"a": None}}
    records = read_manifest(photographs)
    records[4] = replace(records[4], extra=say)
    write_manifest(photographs, records)
    write_shards(photographs, tmp_path / "shards")
    kept, read_image = open_records(tmp_path / "shards")
    assert [record.extra for record in kept] == [say if i == 4 else None for i in range(12)]
    assert kept[4].extra == read_manifest(photographs)[4].extra

    fields = (Image(), Text(tokenizers, ("text", "hair")), Weight())
    folder = ExampleSource(records, fields, seed=0, size=16)
    shards = ExampleSource(kept, fields, seed=0, size=16, read_image=read_image)
    weights = []
    for n in range(12):
        assert_same(folder.example(n), shards.example(n))
        weights.append(float(shards.example(n)["example_weight"]))
    assert sorted(weights) == [0.5] + [1] * 11


def test_further_pictures_are_refused(photographs, tmp_path):
    records = read_manifest(photographs)
    records[4] = replace(records[4], images={"pose": records[4].image, "depth": records[5].image})
    write_manifest(photographs, records)
    with pytest.raises(SystemExit) as ended:
        main(["--from", str(photographs), "--out", str(tmp_path / "s")])
    assert ended.value.code == (
        "error: bert_2.png: has additional images (pose, depth), which shards have no place for; "
        "train from the folder itself"
    )
    assert not (tmp_path / "s").exists() and not (tmp_path / "s.partial").exists()


def test_drawn_people(tmp_path):
    text = "people:in_train?identities=2&pictures=3&size=32"
    main(["--from", text, "--out", str(tmp_path / "shards")])
    records, read_image = open_records(tmp_path / "shards")
    drawn, draw = open_records(text)
    for ours, theirs in zip(records, drawn, strict=True):
        assert ours == replace(theirs, original_size=(32, 32), crop=(0, 0, 32, 32))
        np.testing.assert_array_equal(read_image(ours.image), draw(theirs.image))


def test_fixes_are_counted_and_logged(folder, tmp_path, capsys, caplog):
    records = read_manifest(folder)  # 2 pictures of anna, 4 of bert, 6 of carl
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    lines[3]["face_box"], lines[4]["face_box"] = [-5, 3, 20, 30], [500, 500, 600, 600]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for i in (0, 5):
        whole = open(records[i].image, "rb").read()
        with open(records[i].image, "wb") as file:
            file.write(whole[: len(whole) // 2])
    main(["--from", str(folder), "--out", str(tmp_path / "s"), "--shards", "2"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(
        "9 images of 2 people in 2 shards; 2 images skipped because they do not decode, "
        "1 boxes clipped at the image's edge, 1 boxes outside the image dropped, "
        "1 people with a single image left out, 0 copies of an image under another name "
        "treated as that image"
    )
    assert "anna_0.png: cannot be decoded" in caplog.text and "bert_3.png: cannot" in caplog.text
    kept, read_image = open_records(tmp_path / "s")
    assert [r.image for r in kept] == ["bert_0.png", "bert_1.png", "bert_2.png"] + [
        f"carl_{i}.png" for i in range(6)
    ]
    assert kept[1].face_box[0] == 0 and kept[2].face_box is None
    for record in kept:
        np.testing.assert_array_equal(read_image(record.image), load_image(folder / record.image))


def test_what_cannot_be_put_right_is_listed_and_nothing_is_written(folder, tmp_path):
    records = read_manifest(folder)
    captions = {1: "a man", 3: "a man img img", 6: "img of a man"}
    changed = [replace(r, caption=captions.get(i, r.caption)) for i, r in enumerate(records)]
    write_manifest(folder, changed)
    for i in (8, 9):
        (folder / f"carl_{i - 6}.png").unlink()
    with pytest.raises(SystemExit) as ended:
        main(["--from", str(folder), "--out", str(tmp_path / "s")])
    said = ended.value.code
    assert "5 lines cannot be used" in said and "2 image files are missing" in said
    for i in (*captions, 8, 9):
        assert records[i].image.rpartition("/")[2] in said
    for problem in ("appears 0 times", "appears 2 times", "opens the prompt"):
        assert problem in said
    assert not (tmp_path / "s").exists() and not (tmp_path / "s.partial").exists()


def test_a_killed_run_leaves_nothing_that_opens(tmp_path):
    out, partial = tmp_path / "s", tmp_path / "s.partial"
    text = "people:in_train?identities={}&pictures=16&size=32"
    command = [sys.executable, "-m", "data_pipeline.shards", "--out", str(out), "--from"]
    process = subprocess.Popen([*command, text.format(100)], stderr=subprocess.DEVNULL)
    deadline = time.time() + 300
    while not partial.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.exists() and not out.exists()
    for folder in (partial, *(p for p in partial.rglob("*") if p.is_dir())):
        with pytest.raises(ValueError, match="no such file|missing"):
            open_records(folder)
    assert write_shards(text.format(2), out)["pictures"] == 32
    assert len(open_records(out)[0]) == 32 and not partial.exists()


def test_damaged_and_foreign_folders(shards, tmp_path):
    def damaged(name):
        return shutil.copytree(shards, tmp_path / name)

    with pytest.raises(ShardError, match='captions is "img", not "sks"'):
        open_shards(shards, "sks")
    cut = damaged("cut") / INDEX
    cut.write_text("".join(cut.open().readlines()[:-1]))
    with pytest.raises(ShardError, match="11 of 12 lines"):
        open_records(cut.parent)
    cut.write_text(cut.read_text()[:-20])
    with pytest.raises(ShardError, match="cannot be read"):
        open_records(cut.parent)
    cut.unlink()
    with pytest.raises(ShardError, match=r"index\.jsonl: missing"):
        open_records(cut.parent)
    swapped = damaged("swapped") / INDEX
    head, *lines = swapped.open().readlines()
    swapped.write_text("".join([head, *lines[::-1]]))
    records, read_image = open_records(swapped.parent)
    with pytest.raises(ShardError, match="belongs to other shards"):
        read_image(records[0].image)
    gone = sorted(damaged("gone").glob("*array_record*"))[1]
    gone.unlink()
    with pytest.raises(ShardError, match=f"1 files are missing: .*{gone.name}"):
        open_records(gone.parent)
    with pytest.raises(ShardError, match="exists already"):
        write_shards("people:in_train?identities=1", shards)
    with pytest.raises(ShardError, match="these are shards already"):
        write_shards(shards, tmp_path / "again")
    with pytest.raises(ShardError, match="at least one"):
        write_shards(shards, tmp_path / "again", shards=0)


def test_a_damaged_record_raises_and_is_not_skipped(shards):
    """The fault is not the image's, and replacing it by another would go unnoticed."""
    path = sorted(shards.glob("*array_record*"))[0]
    data = bytearray(path.read_bytes())
    for i in range(200, len(data) - 200):
        data[i] ^= 0x5A
    path.write_bytes(data)
    records, read_image = open_records(shards)
    with pytest.raises(ShardError, match="record 0 cannot be read"):
        read_image(records[0].image)
    assert read_image(records[-1].image).dtype == np.uint8


def test_drawn_pictures_are_png(tmp_path):
    import tensorflow_datasets as tfds

    write_shards("people:in_train?identities=1&pictures=2", tmp_path / "s")
    builder = tfds.builder_from_directory(tmp_path / "s")
    source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    assert PillowImage.open(io.BytesIO(source[1]["image"])).format == "PNG"
