"""Class images next to one person's: captions, turns, weights."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data_pipeline.records.class_images import (
    ClassImageError,
    class_records,
    either,
    is_class_image,
    missing_images,
    repeated,
    with_class_images,
)
from data_pipeline.records.schema import Record


def record(name, **extra):
    return Record(name, "ann", "a woman img", extra=extra or None)


@pytest.fixture
def folder(tmp_path):
    for name in ("b", "a"):
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_captions_are_the_files_own_or_the_prompt(folder):
    (folder / "b.txt").write_text("a woman\n on a beach")
    found = class_records(folder, "a woman")
    assert [each.caption for each in found] == ["a woman", "a woman on a beach"]
    assert all(map(is_class_image, found)) and not is_class_image(record("x"))
    # A run goes on where the folder has moved: only the files' names say where it is.
    moved = folder.parent / "moved"
    folder.rename(moved)
    again = class_records(moved, "a woman")
    assert [replace(r, image="") for r in again] == [replace(r, image="") for r in found]


@pytest.mark.parametrize("text", [None, " \n"])
def test_an_image_without_a_caption_is_refused_by_name(folder, text):
    (folder / "a.txt").write_text("a woman")
    if text is not None:
        (folder / "b.txt").write_text(text)
    with pytest.raises(ClassImageError, match=r"b\.(png|txt): no caption.*config\.class_prompt"):
        class_records(folder, "")


def test_an_empty_folder_and_a_file_are_refused(tmp_path, folder):
    with pytest.raises(ClassImageError, match="no class images"):
        class_records(tmp_path / "none", "a woman")
    with pytest.raises(ClassImageError, match="is a file"):
        missing_images(folder / "a.png", 3)
    assert missing_images(folder, 3) == 1 and missing_images(folder, 1) == 0
    assert missing_images(tmp_path / "none", 3) == 3


def test_repeats(folder):
    names = [each.image for each in repeated([record("x"), record("y", repeats=3)])]
    assert names == ["x", "y", "y", "y"]
    for wrong in (0, 1.5, "2", True):
        with pytest.raises(ClassImageError, match=r"y: repeats is .*whole number"):
            repeated([record("y", repeats=wrong)])


@pytest.mark.parametrize(("own", "others"), [(2, 5), (5, 2), (3, 3)])
def test_as_many_of_either_in_turn(own, others):
    persons = [record(f"own{i}") for i in range(own)]
    classes = [record(f"class{i}") for i in range(others)]
    found = with_class_images(persons, classes, 0.5)
    names = [each.image for each in found]
    assert len(found) == 2 * max(own, others) and len(set(names)) == own + others
    assert all(name.startswith("own") for name in names[::2])
    assert all(name.startswith("class") for name in names[1::2])
    counts = [names.count(f"own{i}") for i in range(own)]
    assert max(counts) - min(counts) <= 1


def test_the_mean_of_weighted_losses_is_the_papers():
    persons = [record("own0"), record("own1", weight=3.0)]
    classes = [record(f"class{i}") for i in range(4)]
    loss = {"own0": 0.3, "own1": 0.7, **{f"class{i}": 0.1 * i for i in range(4)}}
    found = with_class_images(persons, classes, 0.25)
    mean = np.mean([each.extra["weight"] * loss[each.image] for each in found])
    of_class = np.mean([loss[each.image] for each in classes])
    assert mean == pytest.approx((0.3 + 3 * 0.7) / 2 + 0.25 * of_class)
    assert persons[0].extra is None  # the records themselves stay


def test_a_weight_that_is_no_number_stays_for_the_field_to_refuse():
    (own, _) = with_class_images([record("x", weight="two")], [record("y")], 1.0)
    assert own.extra["weight"] == "two"


def test_images_of_two_sources():
    read = either(lambda name: ("own", name), lambda name: ("class", name), [record("y")])
    assert read("x") == ("own", "x") and read("y") == ("class", "y")
