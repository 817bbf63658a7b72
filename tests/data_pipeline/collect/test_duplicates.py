"""Copies are found by hash and face; of them the largest stays, and nobody shares a picture."""

import itertools

import numpy as np
import pytest
from PIL import Image

from data_pipeline.collect import duplicates
from data_pipeline.collect.duplicates import near_pairs, of_two_people, without_copies
from data_pipeline.collect.looking.phash import as_number, phash
from data_pipeline.collect.settings import Duplicates
from data_pipeline.drawing import people as drawn
from tests.data_pipeline.collect.made import choice


@pytest.fixture(scope="module")
def pictures():
    return drawn.examples("in_train", np.arange(40) // 2, np.arange(40), 128, 0).images


def bits_apart(one, other) -> int:
    return (as_number(phash(one)) ^ as_number(phash(other))).bit_count()


def test_a_copy_in_another_size_and_quality_is_near_and_another_picture_is_not(pictures, tmp_path):
    for image in pictures[:8]:
        Image.fromarray(image).resize((96, 96)).save(tmp_path / "copy.jpg", quality=60)
        assert bits_apart(image, np.asarray(Image.open(tmp_path / "copy.jpg"))) <= 8
    hashes = np.array([as_number(phash(image)) for image in pictures], np.uint64)
    assert len(list(near_pairs(hashes, 8))) < 0.01 * len(pictures) ** 2 / 2


def slowly(hashes, bits):
    pairs = itertools.combinations(range(len(hashes)), 2)
    apart = ((i, j, int(hashes[i] ^ hashes[j]).bit_count()) for i, j in pairs)
    return sorted(pair for pair in apart if pair[2] <= bits)


@pytest.mark.parametrize("limit", [0, 10_000])  # by bands, and all pairs
@pytest.mark.parametrize("bits", [0, 3, 8])
def test_pairs_are_those_of_the_plain_search(limit, bits, monkeypatch):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64) * np.uint64(2)
    near = hashes[:100].copy()
    for n in range(100):  # each differs from one before in 0 to 10 bits
        for bit in rng.choice(64, n % 11, replace=False):
            near[n] ^= np.uint64(1) << np.uint64(bit)
    every = np.concatenate([hashes, near])
    monkeypatch.setattr(duplicates, "ALL_PAIRS", limit)
    assert sorted(near_pairs(every, bits)) == slowly(every, bits)


def test_the_largest_stays_and_at_one_size_the_first():
    same = "00000000000000ff"
    small = choice(0, size=(600, 600), phash=same)
    large = choice(1, size=(900, 900), phash="00000000000000fe")
    again = choice(2, size=(900, 900), phash=same)
    other = choice(3, size=(700, 700))
    kept, dropped = without_copies([small, large, again, other], Duplicates())
    assert [c.order for c in kept] == [1, 3]
    assert [(d.order, d.value, d.threshold, d.reason) for d in dropped] == [
        (0, 1, 8, "near copy"),
        (2, 1, 8, "near copy"),
    ]
    assert dropped[0].dropped().value == {"bits": 1, "of": large.picture.key}


def test_the_same_file_twice_is_one_even_without_hashes():
    kept, dropped = without_copies([choice(0, key="a"), choice(1, key="a")], Duplicates(bits=None))
    assert [c.order for c in kept] == [0] and dropped[0].reason == "same file"


def test_two_people_before_one_wall_are_no_copies():
    wall = "0123456789abcdef"
    pair = [
        choice(n, name, phash=wall, embeddings=np.eye(8)[[n]]) for n, name in enumerate(("a", "b"))
    ]
    assert of_two_people(pair, Duplicates())[1] == []
    assert len(of_two_people(pair, Duplicates(same_face=-1.0))[1]) == 1


@pytest.mark.parametrize(("across", "gone"), [("worse", [1]), ("both", [0, 1])])
def test_a_picture_under_two_names(across, gone):
    surer = choice(0, "ann", key="x").with_(score=0.9)
    less = choice(1, "bob", key="x").with_(score=0.5)
    kept, dropped = of_two_people([surer, less], Duplicates(across=across))
    assert [drop.order for drop in dropped] == gone
    assert {drop.reason for drop in dropped} == {"same file of two people"}
    assert len(kept) == 2 - len(gone)
