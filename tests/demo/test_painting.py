"""From what is entered to images, with the shipped adapter."""

import numpy as np
import pytest

from persongen_jax.demo.judging import Judges
from persongen_jax.demo.offers import Models, miniature
from persongen_jax.demo.painting import Cancelled, Person, Request, paint, with_trigger
from persongen_jax.demo.photographs import read_photograph


@pytest.fixture(scope="module")
def models():
    return Models(miniature())


@pytest.fixture(scope="module")
def person(strangers):
    return Person((read_photograph(strangers[0]),), (0,))


def test_the_trigger_word_is_put_behind_the_class_word(models, person):
    adapter, base = models.offers.values()
    pipe = models.open(adapter)
    assert with_trigger(pipe, "a tall man, smiling", [person]) == "a tall man img, smiling"
    assert with_trigger(pipe, "a lady img", [person]) == "a lady img"
    assert with_trigger(pipe, "a lady", []) == "a lady"  # nobody, so nothing marks them
    with pytest.raises(ValueError, match="does not say who it is: write one of person, man"):
        with_trigger(pipe, "a lady in a hat", [person])
    assert with_trigger(models.open(base), "a man", [person]) == "a man"


@pytest.mark.slow
def test_images_are_judged_noted_and_hidden(models, person):
    adapter, base = models.offers.values()
    asked = Request(
        "a photo of a man", people=(person,), steps=4, images=2, parts={"body": "a hat"}
    )
    (first, second), said = paint(models, adapter, asked, judges=Judges.of_miniature())
    assert first.notes["prompt"] == "a photo of a man img" and second.notes["index"] == 1
    assert first.notes["settings"]["steps"] == 4 and first.clip_t is not None and said == []
    assert not np.array_equal(first.image, second.image)
    (again, _), _ = paint(models, adapter, asked, judges=Judges())
    assert np.array_equal(again.image, first.image) and again.face_sim is again.clip_t is None

    seen = []
    shown, said = paint(
        models,
        adapter,
        asked,
        judges=Judges(),
        on_preview=seen.append,
        checker=lambda images: np.array([False, True]),
    )
    assert shown[0].image.any() and not shown[1].image.any() and not seen
    assert said == ["1 of 2 images are black: the safety checker"]

    _, said = paint(models, base, asked, judges=Judges())
    assert said == ["the photographs have no effect: this model reads no references"]

    def end(steps):
        raise Cancelled

    with pytest.raises(Cancelled):
        paint(models, adapter, asked, judges=Judges(), progress=end)
