"""What people enter becomes a request, and what cannot be read is named."""

import numpy as np
import pandas
import pytest

from persongen_jax.demo.tabs import form
from persongen_jax.demo.tabs.fields import Upload, escaped

SETTINGS = {
    "negative": None,
    "strengths": [["identity", 1.0, 0, 1], ["lora", 1, 0, 1]],
    "seed": 7,
    "random_seed": False,
    "steps": 4,
    "guidance": 5,
    "sampler": form.MODELS_OWN,
    "width": 0,
    "height": 0,
    "images": 1,
}
USUAL = {"identity": 1.0, "lora": 1.0}


def test_what_is_not_touched_is_the_models_own():
    read = form.read_settings(SETTINGS, USUAL)
    assert read["scales"] == {} and read["sampler"] is None
    assert (read["width"], read["height"], read["seed"]) == (None, None, 7)


def test_strengths_are_numbers_or_ranges():
    rows = [
        ["identity", 0.8, 0, 0.5],
        ["identity", 0.2, 0.5, 1],
        ["lora", 0.5, 0, 1],
        ["", "", 0, 1],
    ]
    wanted = {"identity": [(0.0, 0.5, 0.8), (0.5, 1.0, 0.2)], "lora": 0.5}
    assert form.read_strengths(rows, USUAL) == wanted
    assert form.read_strengths(pandas.DataFrame(rows), USUAL) == wanted
    assert form.read_strengths(form.rows_of(wanted), USUAL) == wanted
    assert form.read_strengths([[None, np.nan, "", None]], USUAL) == {}
    with pytest.raises(ValueError, match="a row has no name"):
        form.read_strengths([["", 0.2, 0.5, 1]], USUAL)
    with pytest.raises(ValueError, match="the row of identity needs three numbers"):
        form.read_strengths([["identity", "much", 0, 1]], USUAL)


def test_another_seed_each_time():
    seeds = {form.read_settings({**SETTINGS, "random_seed": True}, USUAL)["seed"] for _ in "1234"}
    assert len(seeds) > 1


def test_sizes_have_a_limit():
    with pytest.raises(ValueError, match="width 4096: give up to 2048"):
        form.read_settings({**SETTINGS, "width": 4096}, USUAL)


def test_people_and_their_faces():
    photos = [Upload(np.full((8, 8, 3), n, np.uint8), f"{n}.png") for n in range(2)]
    values = {"photograph_1": photos[0], "photograph_2": None, "photograph_3": photos[1]}
    values |= {"face_1": "1", "face_2": "1", "face_3": "2"}
    person = form.person(values)
    assert person.faces == (0, 1) and [p[0, 0, 0] for p in person.photographs] == [0, 1]
    assert form.person({"photograph_1": None}) is None
    assert form.uploads(values) == photos
    asked = form.request({"prompt": " a man ", "background": None, "body": "a coat"}, [person])
    assert (asked.prompt, asked.parts["body"], asked.people) == ("a man", "a coat", (person,))
    with pytest.raises(ValueError, match="the prompt is empty"):
        form.request({"prompt": "  "}, [])


def test_regions_are_where_their_colour_is():
    layer = np.zeros((4, 6, 4), np.uint8)
    layer[:, :2] = 214, 39, 40, 255
    layer[:, 4:] = 31, 119, 180, 255
    layer[0, 2] = 214, 39, 40, 10  # nearly transparent
    red, blue = form.masks_of({"layers": [layer]}, [(214, 39, 40), (31, 119, 180)])
    assert red.sum() == 8 and red[:, :2].all() and blue.sum() == 8 and blue[:, 4:].all()
    layer[:, 4:] = 0
    with pytest.raises(ValueError, match="draw where person 2 may be"):
        form.masks_of({"layers": [layer]}, [(214, 39, 40), (31, 119, 180)])
    with pytest.raises(ValueError, match="person 1"):
        form.masks_of(None, [(214, 39, 40)])


def test_what_is_typed_is_shown_and_not_interpreted():
    shown = escaped('<img src=x onerror="a()"> **b** [c](d)')
    assert not set('<>*[]()"') & set(shown)
