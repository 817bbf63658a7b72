"""Pairs of images of two folders: unique keys, what they have in common, differences by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from persongen_jax.evaluation.folders.entries import Entry, Folder
from persongen_jax.evaluation.folders.pairing import check_common, differences, give_keys
from persongen_jax.evaluation.folders.scoring import Scores
from persongen_jax.metrics.base import Values


def folder(name, *keys):
    return Folder(name, Path(name), "", [Entry(f"{i}.png", *key) for i, key in enumerate(keys)])


def entry(person, prompt="p", seed=""):
    return person, prompt, prompt, seed


def seeds(folder):
    return [entry.seed for entry in folder.entries]


def test_images_of_one_key_are_numbered():
    one = folder("a", entry("ann", seed="1"), entry("ann", seed="1"), entry("bob", seed="1"))
    (note,) = give_keys([one])
    assert seeds(one) == ["1", "1 #2", "1"] and note.startswith("a: 1 images share person")
    # Where one folder has no seeds, no folder's seeds count.
    one, two = (
        folder("a", entry("ann", seed="9"), entry("ann", seed="8")),
        folder("b", entry("ann")),
    )
    (note,) = give_keys([one, two])
    assert seeds(one) == ["#1", "#2"] and seeds(two) == ["#1"]
    assert note.startswith("not every seed is known (b): images of a person and prompt are num")


def test_an_excluded_image_leaves_the_others_their_partners():
    one = folder("a", entry("ann"), entry("ann"), entry("bob"))
    one.excluded = {"0.png": "damaged"}
    give_keys([one])
    one.drop_excluded()
    assert seeds(one) == ["#2", "#1"]
    # A damaged file says no seed; the others' seeds count nevertheless.
    two = folder("b", entry("ann", ""), entry("ann", seed="4"), entry("ann", seed="5"))
    two.excluded = {"0.png": "damaged"}
    give_keys([two])
    two.drop_excluded()
    assert seeds(two) == ["4", "5"]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (entry("eve", seed="1"), r"a and b have no people in common \(ann, bob; eve\)"),
        (entry("ann", "q", seed="1"), "no prompts in common"),
        (entry("ann", seed="2"), "no seeds in common"),
    ],
)
def test_folders_of_nothing_in_common(key, said):
    with pytest.raises(ValueError, match=said):
        check_common(folder("a", entry("ann", seed="1"), entry("bob", seed="1")), folder("b", key))


def test_what_only_one_has_is_said():
    one = folder("a", entry("ann", "p", "1"), entry("ann", "q", "1"))
    two = folder("b", entry("ann", "p", "1"), entry("bob", "p", "1"))
    check_common(one, two)
    assert one.notes[0].startswith("1 prompts of a are not in b: q")
    assert two.notes[0].startswith("1 people of b are not in a: bob")
    crossed = folder("c", entry("bob", "p", "1"), entry("ann", "q", "1"))
    with pytest.raises(ValueError, match="but no image with all three"):
        check_common(folder("a", entry("ann", "p", "1"), entry("bob", "q", "1")), crossed)


def scores(name, keys, values):
    metric = SimpleNamespace(name="grey", title="grey", form="{:.1f}", bounds=None, over="images")
    of_set = SimpleNamespace(name="gap", over="set")
    found = {"grey": Values(np.array(values)), "gap": Values(1.0)}
    return Scores(folder(name, *keys), [], {"grey": metric, "gap": of_set}, found, {})


def test_differences_by_hand():
    keys = [entry(person, seed=seed) for person in ("ann", "bob", "eve") for seed in "12"]
    one = scores("a", keys, [1, 2, 3, 4, np.nan, 6])
    two = scores("b", [*keys[::-1], entry("zoe", seed="1")], [5, 9, 3, 3, 2, 0, 7])
    (found,) = differences(one, two)  # a set's number has no pairs
    assert (found.first, found.second) == ("a", "b")
    assert found.interval.mean == pytest.approx((1 + 0 + 0 + 1 + 1) / 5)
    assert (found.interval.n, found.interval.units) == (5, 3)
    assert found.interval.low < found.interval.mean < found.interval.high
    assert found.left_out == "2 of 7 not compared: 1 only in the second, 1 not measured"
    assert found.people > 3 and found.seeds > 2
