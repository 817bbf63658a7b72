"""Elements of prompts: read exactly, judged on drawn pictures, and what cannot be told is said."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipeline.drawing.people import examples
from data_pipeline.prompts import join_parts, split_at_trigger
from persongen_jax.metrics.base import Generated, Known, People
from persongen_jax.metrics.measures import measure_all
from persongen_jax.metrics.registry import open_metrics
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.miniature.elements.metrics import EXTRA, SOUND
from persongen_jax.miniature.elements.named import Named, read_prompt

HERE = "persongen_jax.miniature.elements.metrics"
COUNT = 24


def whole_prompts(drawn):
    parts = zip(drawn.captions, drawn.backgrounds, drawn.bodies, strict=True)
    return [join_parts("".join(split_at_trigger(g)), b, body) for g, b, body in parts]


@pytest.fixture(scope="module")
def drawn():
    return examples("in_train", np.arange(300), np.arange(300), size=16)


def test_prompts_are_read_as_they_were_written(drawn):
    for i, text in enumerate(whole_prompts(drawn)):
        named, true = read_prompt(text), {k: v[i] for k, v in drawn.attributes.items()}
        assert named.place == true["scene"], text
        assert (named.clothes, named.colour) == (true["clothes"], true["clothes_colour"]), text
        assert (named.hat or "none") == true["hat"], text
        assert (named.doing or "arms down") == true["doing"], text
        assert (named.expression or "neutral") == true["expression"], text
        assert named.objects <= {true["left_object"], true["right_object"]}, text


def test_other_words_name_nothing():
    assert read_prompt("a portrait of a man in a space suit") == Named(clothes="space suit")
    assert read_prompt("Someone is very happy on the BEACH").expression == "laughing"
    assert read_prompt("a capable parkour runner") == read_prompt("") == Named()


@pytest.mark.slow
def test_elements_of_drawn_pictures(capsys):
    config = ConfigDict({"clip": str(ASSETS / "judges" / "clip")})
    config.metrics = (f"{HERE}:ElementsFound", f"{HERE}:ExtraObjects")
    metrics = open_metrics(config)
    number = np.arange(COUNT)
    drawn = examples("out_of_train", number + 200, number + 46_000_000, framing_weights=(1, 0, 0))
    nobody = Known("set", People(lambda: []), People(lambda: []))
    texts, owners = whole_prompts(drawn), [str(name) for name in drawn.identity]

    def measured(texts):
        return measure_all(metrics, Generated(drawn.images, owners, texts), nobody)

    right, wrong = measured(texts), measured(texts[1:] + texts[:1])
    found, extra = right["elements_found"], right["extra_objects"]
    assert found["mean"] > 0.85 and extra["mean"] < 0.2
    assert wrong["elements_found"]["mean"] < 0.5 and wrong["extra_objects"]["mean"] > 0.6
    shares = found["judge_right"]
    assert shares["place"] > 0.9 and shares["colour"] > 0.9 and extra["judge_right"] == shares
    told = {name for name, share in shares.items() if share >= SOUND}
    assert {"place", "colour"} <= set(found["parts"]) == told - {EXTRA}
    left_out = found["note"].partition("; ")[2].removesuffix(" are left out").split(" and ")
    assert set(left_out) - {""} == shares.keys() - told
    assert measured(["a picture"] * COUNT) == {}
    assert "no prompt names an expression, place" in capsys.readouterr().out
