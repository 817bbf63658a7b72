"""Folders, shards and drawn people as sources; invalid sources list the valid ones."""

import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest

from data_pipeline.drawing import people
from data_pipeline.pictures.reading import ImageError, load_image
from data_pipeline.records.manifest import read_manifest
from data_pipeline.records.schema import Record
from data_pipeline.records.sources import SourceError, open_records
from tests.data_pipeline.photographs import photograph_source

FEW = "people:in_train?identities=3&pictures=4"


@pytest.fixture(scope="module")
def few():
    return open_records(FEW)


def test_a_folder_of_photographs(folder):
    records, read_image = open_records(folder)
    assert records == read_manifest(folder)
    np.testing.assert_array_equal(read_image(records[3].image), load_image(records[3].image))


def test_people_are_those_that_are_drawn(few):
    records, read_image = few
    drawn = people.examples("in_train", np.arange(12) // 4, np.arange(12))
    assert len({record.image for record in records}) == len(records) == 12
    for i, record in enumerate(records):
        np.testing.assert_array_equal(read_image(record.image), drawn.images[i])
        assert record.identity == drawn.identity[i] and record.caption == drawn.captions[i]
        assert (record.background, record.body) == (drawn.backgrounds[i], drawn.bodies[i])
        assert record.class_word == drawn.attributes["class_word"][i]
        for name in ("face_box", "landmarks", "keypoints", "visibility"):
            np.testing.assert_allclose(getattr(record, name), getattr(drawn, name)[i], atol=6e-4)
    assert records[5].image == "people/in_train/000001/000005"


def test_no_two_images_share_their_variation(few):
    """Not even of different people: each has its own caption or face position."""
    records, _ = few
    assert len({(r.caption, r.background, r.body, r.face_box) for r in records}) == len(records)


def test_people_from_a_number_on():
    own, _ = open_records("people:in_train?identities=1&pictures=2&size=32&first_identity=1")
    both, _ = open_records("people:in_train?identities=2&pictures=2&size=32")
    assert {r.identity for r in own} == {both[-1].identity} != {both[0].identity}


def test_parameters_of_people():
    text = "people:out_of_domain?identities=2&pictures=3&seed=5&size=32&first_picture=40"
    records, read_image = open_records(text + "&framing=portrait", trigger_word="sks")
    who, pictures = [0, 0, 0, 1, 1, 1], np.arange(40, 46)
    drawn = people.examples("out_of_domain", who, pictures, 32, 5, framing_weights=(1, 0, 0))
    assert (drawn.attributes["framing"] == "portrait").all()
    for i, record in enumerate(records):
        np.testing.assert_array_equal(read_image(record.image), drawn.images[i])
        assert record.caption == drawn.captions[i].replace(" img", " sks")
    assert records[-1].image == "people/out_of_domain/000001/000045"


def test_pictures_in_memory_are_safe(few):
    records, read_image = few
    with pytest.raises(ValueError, match="read-only"):
        read_image(records[0].image)[:] = 0
    with pytest.raises(ImageError, match=r"people/nobody: no such image in people:in_train"):
        read_image("people/nobody")


def test_people_train_without_files(few, tokenizers):
    records, read_image = few
    options = {"size": 64, "id_size": 32, "read_image": read_image, "random_crop": False}
    source = photograph_source(records, tokenizers, seed=0, **options)
    pictures = np.stack([read_image(record.image) for record in records])
    shown = set()
    for n in range(len(records)):
        pixels = np.rint((source.example(n)["pixel_values"] + 1) * 127.5).astype(np.uint8)
        shown |= set(np.flatnonzero((pictures == pixels).all(axis=(1, 2, 3))))
    assert shown == set(range(len(records)))


def test_people_need_no_heavy_library():
    code = (
        "import sys\n"
        "from data_pipeline.records.sources import open_records\n"
        f"records, read_image = open_records({FEW!r})\n"
        "assert read_image(records[0].image).shape == (64, 64, 3)\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'torch', 'jax', 'skimage'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("data_pipeline.records.sources", ["data_pipeline.shards", "tensorflow_datasets"]),
        (
            "data_pipeline.records.shard_reading",
            ["data_pipeline.shards", "data_pipeline.records.sources"],
        ),
        ("data_pipeline.shards", ["tensorflow_datasets", "data_pipeline.drawing.people"]),
        (
            "data_pipeline.records.manifest",
            ["data_pipeline.records.sources", "data_pipeline.records.shard_reading"],
        ),
    ],
)
def test_no_module_imports_what_imports_it(module, absent):
    """Each alone in a process: writing shards reads sources, which read shards."""
    code = (
        f"import sys, {module}\n"
        f"found = set(sys.modules) & set({absent!r})\n"
        "assert not found, found\n"
        f"assert {module!r} in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "no data given; give a folder of photographs"),
        ("people:", "split '' is unknown; use in_train, out_of_train"),
        ("people:nobody?pictures=3", "out_of_domain or look_alikes"),
        ("people:in_train?persons=3", "persons is unknown here; known are identities, pictures"),
        ("people:in_train?pictures", "name=value"),
        ("people:in_train?pictures=", "pictures=; a whole number of at least 2"),
        ("people:in_train?pictures=1", "of at least 2"),
        ("people:in_train?identities=-3", "identities=-3; a whole number of at least 1"),
        ("people:in_train?size=6e1", "size=6e1"),
        ("people:in_train?seed=1&seed=2", "appears twice"),
        ("people:in_train?framing=half", "use mixed, portrait or figures"),
        ("photographs/of/nobody", "photographs/of/nobody: no such folder; give a folder"),
    ],
)
def test_invalid_sources_are_refused(data, message):
    with pytest.raises(SourceError, match=message):
        open_records(data)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.jsonl: no such file"):
        open_records(tmp_path)


def test_every_field_of_a_record_is_filled(few):
    """Except the two that say what an image was cropped from, and what a manifest may add."""
    absent = {f.name for f in fields(Record) if any(not getattr(r, f.name) for r in few[0])}
    assert absent == {"original_size", "crop", "images", "extra"}
