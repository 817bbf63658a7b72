"""Captions of drawn people, their clothes, scenes and objects, against the pixels."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data_pipeline.drawing import people as api
from data_pipeline.drawing.canvas import Canvas
from data_pipeline.drawing.pictures import COLOUR_NAMES, PALETTE, SCENES, SUNSET_SCENES
from data_pipeline.drawing.scenes import paint_scenes
from data_pipeline.prompts import split_at_trigger
from tests.data_pipeline.crowd import N

VALIDATION_PROMPTS = """
Photo of a person img looking into the camera. Daytime, 3 mountains in the background, a medieval
castle can be seen on the far right mountain. The person is wearing a black cloak and red hat.
A photo of an angry businessman img looking into the camera. He is in the street of a big city: to
the left behind him is a bank building with a big sign above it saying "Neon Bank". He is in a
yellow suit, talking on the phone. A photo of a man img, his face is seen very surprised. He is in
the desert near Oasis with lake, palm trees and a couple of camels behind him. The man is in a space
suit. A photo of a middle-aged man img looking at the viewer. He is in a room with white walls,
there is a portrait behind him and a books on a shelf. The man is in a dark green sweater.
"""


def test_captions_tell_the_truth(crowd):
    who, _, drawn = crowd
    known = set(api.vocabulary())
    he = {"man": "he", "boy": "he", "woman": "she", "girl": "she", "person": "the person"}
    scene_words = {
        **{"mountains": "mountain", "city": "city", "desert": "desert", "room": "room"},
        **{"beach": "beach", "forest": "forest", "snowy night": "night", "park": "park"},
        **{"space": "space", "stage": "stage"},
    }
    labels = drawn.attributes
    for i in range(N):
        caption, background, body = drawn.captions[i], drawn.backgrounds[i], drawn.bodies[i]
        before, _ = split_at_trigger(caption, api.TRIGGER)  # raises unless there is exactly one
        word = labels["class_word"][i]
        assert before.split()[-1] in (word, f"business{word}")
        assert api.TRIGGER not in f"{background} {body}".split()
        assert scene_words[labels["scene"][i]] in background
        assert f"{labels['clothes_colour'][i]} {labels['clothes'][i]}" in body
        assert ("hat" if labels["hat"][i] == "hat" else labels["hat"][i]) in body or (
            labels["hat"][i] == "none"
        )
        if labels["hat"][i] != "none":
            assert f"{labels['hat_colour'][i]} {labels['hat'][i]}" in body
        assert ("sunset" in background) == labels["sunset"][i]
        assert he[word] in body or f"the {word}" in body
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|[{}]|  ", f"{caption} {background} {body}")
        assert set(api.words_of(f"{caption} {background} {body}")) <= known
    assert len(set(drawn.captions)) > N / 2


def test_vocabulary_covers_the_validation_prompts():
    assert set(api.words_of(VALIDATION_PROMPTS)) <= set(api.vocabulary())
    assert len(api.vocabulary()) < 200


def test_clothes_have_their_colour():
    """The labelled colour is the most common one of the palette on the chest."""
    pictures = api.draw_pictures(seed=8, count=300, framing_weights=(0, 1, 0))
    who = api.make_identities("in_train", 300)
    drawn = api.render(who, replace(pictures, pose=0 * pictures.pose))
    right = []
    for i in range(300):
        left, top = drawn.keypoints[i, [1, 7]].min(0)
        x1, y1 = drawn.keypoints[i, [0, 6]].max(0)
        chest = drawn.images[i, int(top) + 2 : int(min(y1, 62)), int(max(left, 0)) : int(x1)]
        distance = np.abs(chest[..., None, :] / 255 - PALETTE).sum(-1)
        votes = np.bincount(distance.argmin(-1).ravel(), minlength=len(PALETTE))
        right.append(COLOUR_NAMES[votes.argmax()] == drawn.attributes["clothes_colour"][i])
    assert np.mean(right) > 0.97


def test_scenes_and_their_mirror_images_are_distinguishable():
    """Nearest mean image among scenes and sides, from images with other people in front."""
    drawn = api.render(api.make_identities("in_train", 900), api.draw_pictures(seed=9, count=900))
    sides = np.isin(drawn.attributes["scene"], ["mountains", "city", "room", "desert"])
    label = np.char.add(
        drawn.attributes["scene"], np.where(sides & drawn.attributes["mirrored"], "<", ">")
    )
    label = np.char.add(label, drawn.attributes["sunset"].astype(str))
    flat = drawn.images[:, :40].reshape(900, -1).astype(np.float32)
    train, test = np.arange(900) < 700, np.arange(900) >= 700
    names = sorted(set(label[train]))
    means = np.stack([flat[train & (label == name)].mean(0) for name in names])
    guess = np.array(names)[((flat[test, None] - means) ** 2).mean(-1).argmin(1)]
    assert np.mean(guess == label[test]) > 0.85
    assert set(SUNSET_SCENES) < set(SCENES)
    assert not drawn.attributes["sunset"][drawn.attributes["scene"] == "room"].any()


# A scene's first object, by a colour that is unique to it.
FIRST_OBJECTS = {
    "mountains": (0.70, 0.16, 0.14),  # the castle's roofs
    "city": (0.10, 0.03, 0.16),  # the bank's sign
    "desert": (0.20, 0.55, 0.75),  # the lake under the palm trees
    "room": (0.22, 0.34, 0.32),  # the portrait
    "beach": (0.88, 0.14, 0.14),  # the umbrella
    "snowy night": (0.98, 0.97, 0.85),  # the moon
    "park": (0.80, 0.12, 0.12),  # the bench
    "space": (0.12, 0.38, 0.85),  # the earth
}


def test_objects_are_where_the_caption_says():
    """The side named first in a background caption's pair of sides, against the bare scene."""
    n = 400
    pictures = api.draw_pictures(seed=10, count=n)
    canvas = Canvas.blank(n, 64)
    paint_scenes(canvas, pictures)
    captions = api.render(api.make_identities("in_train", n), pictures).backgrounds
    checked = set()
    for i, caption in enumerate(captions):
        scene = SCENES[pictures.scene[i]]
        first = re.search(
            r"castle[^,]* (left|right)|(?:bank|sign|portrait|umbrella|moon|bench|earth)[^,:]*? "
            r"(left|right)|to the (left|right) behind \w+ is a bank|trees[^,]*? (left|right)",
            caption.replace("the person", "them"),
        )
        if scene not in FIRST_OBJECTS or first is None:
            continue
        colour = np.array(FIRST_OBJECTS[scene])[:, None, None]
        columns = np.nonzero(np.abs(canvas.pixels[i] - colour).max(0) < 0.02)[1]
        side = next(group for group in first.groups() if group)
        assert columns.size and (columns.mean() < 32) == (side == "left"), caption
        checked.add((scene, side))
    assert len(checked) == 2 * len(FIRST_OBJECTS)


@pytest.mark.parametrize("size", [48, 128])
def test_resolution_changes_nothing_but_sharpness(crowd, size):
    who, pictures, drawn = crowd
    rows = np.arange(24)
    other = api.render(who.take(rows), pictures.take(rows), size=size)
    np.testing.assert_allclose(other.landmarks / size, drawn.landmarks[rows] / 64, atol=1e-5)
    np.testing.assert_array_equal(other.visibility, drawn.visibility[rows])
    for i in rows:
        shrunk = Image.fromarray(other.images[i]).resize((64, 64), Image.Resampling.BOX)
        difference = np.abs(np.asarray(shrunk).astype(int) - drawn.images[i])
        assert difference.mean() < (4 if size == 128 else 12)
