"""Element-wise prompt following of drawn people, as the thesis' section 6.3 judges it by eye.

    python -m persongen_jax.evaluate --run RUN \\
        --metrics persongen_jax.miniature.elements.metrics:ElementsFound

What a prompt names is read with the miniature's vocabulary (named.py); ``config.clip`` is asked
which of several texts fits the image best. It is asked about drawn pictures first, and what it
cannot tell of these it does not judge.
"""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from data_pipeline.drawing.people import examples
from data_pipeline.drawing.pictures import CLOTHES, COLOUR_NAMES, OBJECTS
from data_pipeline.prompts import join_parts, split_at_trigger
from persongen_jax.metrics.base import Generated, Known, NoFigure, Values
from persongen_jax.metrics.clip_score import ClipScore
from persongen_jax.metrics.judged import JudgedByClip
from persongen_jax.metrics.judges import Judges
from persongen_jax.miniature.elements.named import Named, read_prompt
from persongen_jax.miniature.elements.questions import (
    MARK,
    at_the_mark,
    expressions_of,
    scenes_of,
    with_word,
)

ALL_OBJECTS = tuple(name for pair in OBJECTS.values() for name in pair if name != "none")
LIKELY = 3  # an object is there if it is among so many of ALL_OBJECTS that fit best
SOUND = 0.85  # share of drawn pictures about which a judge of an element must be right
CHECKED = 64  # drawn pictures
FIRST = 45_000_000  # number of the first of them: no training has it


class OfElements(JudgedByClip):
    """Base: what the judge sees of what the prompts name, and how often it is right.

    Facts: "judge_right", the share of drawn pictures about which the judge is right, by element;
    and a "note" that has them in words, and names the elements that are left out.

    Raises, when called:
        NoFigure: no prompt is known or names anything, or the judge can tell nothing.
    """

    form, bounds = "{:.1%}", (0.0, 1.0)

    def __init__(self, config: ConfigDict, judges: Judges):
        super().__init__(config, judges)
        self._right: dict[str, float] | None = None

    @property
    def right(self) -> dict[str, float]:
        """The share of drawn pictures about which the judge is right, by element."""
        if self._right is None:
            number = np.arange(CHECKED)
            drawn = examples("out_of_train", number, FIRST + number, framing_weights=(1, 0, 0))
            parts = zip(drawn.captions, drawn.backgrounds, drawn.bodies, strict=True)
            texts = [join_parts("".join(split_at_trigger(g)), b, body) for g, b, body in parts]
            seen = see(self.clip.clip, self.clip.image_features(drawn.images), texts)
            self._right = {name: float(np.nanmean(values)) for name, values in seen.items()}
            self._right[EXTRA] = 1 - self._right[EXTRA]
        return self._right

    def seen(self, generated: Generated) -> tuple[dict[str, np.ndarray], dict]:
        """What ``see`` says of the images, of elements that the judge can tell; and the facts."""
        if generated.texts is None:
            raise NoFigure("no prompt is known: give the images' prompts")
        seen = generated.once(
            (self.clip, "elements"),
            lambda: see(self.clip.clip, self.clip.features(generated), generated.texts or ()),
        )
        if all(np.isnan(values).all() for values in seen.values()):
            raise NoFigure(
                "no prompt names an expression, place, object or clothes of the miniature's world"
            )
        unsound = [name for name, share in self.right.items() if share < SOUND]
        said = ", ".join(f"{name} {share:.0%}" for name, share in self.right.items())
        facts: dict = {"judge_right": {name: round(r, 3) for name, r in self.right.items()}}
        facts["note"] = f"of {CHECKED} drawn pictures the judge is right about {said}"
        if unsound:
            facts["note"] += f"; {' and '.join(unsound)} are left out"
        return {name: values for name, values in seen.items() if name not in unsound}, facts


class ElementsFound(OfElements):
    """Share of the elements that an image's prompt names which are there; NaN if it names none.

    The parts are place, objects, expression, clothes and colour of the clothes, as far as the
    judge can tell them; the fact "all_found" is the share of images that have every one.
    """

    name, title = "elements_found", "elements found"

    def __call__(self, generated: Generated, known: Known) -> Values:
        seen, facts = self.seen(generated)
        seen.pop(EXTRA, None)
        if not seen:
            raise NoFigure(f"{facts['note']}: give a CLIP that can tell")
        table = np.stack(list(seen.values()), axis=1)
        named = (~np.isnan(table)).sum(1)
        values = np.where(named > 0, np.nansum(table, axis=1) / np.maximum(named, 1), np.nan)
        there = values[named > 0]
        facts["all_found"] = float((there == 1).mean()) if len(there) else None
        return Values(values, facts=facts, parts=seen)


class ExtraObjects(OfElements):
    """1 where the object that fits the image best belongs to another place than the named one.

    And is not named itself; NaN where the prompt names no place, or one that has no objects.
    """

    name, title, less_is_better = "extra_objects", "extra objects", True

    def __call__(self, generated: Generated, known: Known) -> Values:
        seen, facts = self.seen(generated)
        if EXTRA not in seen:
            raise NoFigure(f"{facts['note']}: give a CLIP that can tell")
        return Values(seen[EXTRA], facts=facts)


EXTRA = "extra objects"


def see(clip: ClipScore, features: np.ndarray, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """By element, [n] 1 where it is there, 0 where it is not, NaN where it is not named.

    "objects" is the share of the named ones. EXTRA is 1 where the best fitting object is neither
    named nor of the named place; NaN where no place is named that has objects.

    Args:
        features: of the images, unit vectors [n, d].
        texts: their prompts.
    """
    named = [read_prompt(text) for text in texts]
    places = _same(scenes_of(clip, features), [each.place for each in named])
    moods = _same(expressions_of(clip, features), [each.expression for each in named])
    found = {"place": places, "expression": moods}
    found |= _clothes(clip, features, texts, named)
    return {**found, **_objects(clip, features, named)}


def _same(seen: np.ndarray, named: Sequence[str]) -> np.ndarray:
    right = [np.nan if not own else float(own == one) for one, own in zip(seen, named, strict=True)]
    return np.array(right, np.float64)


def _clothes(clip, features, texts, named: Sequence[Named]) -> dict[str, np.ndarray]:
    """The kind and the colour of the clothes, each in place of the named one in the prompt."""
    found = {}
    for element, options in (("clothes", CLOTHES), ("colour", COLOUR_NAMES)):
        values = np.full(len(texts), np.nan)
        own = [each.clothes if element == "clothes" else each.colour for each in named]
        rows = [i for i, one in enumerate(own) if one]
        marked = []
        for i in rows:
            whole = f"{named[i].colour} {named[i].clothes}".strip()
            marked.append(with_word(texts[i].lower(), whole, whole.replace(own[i], MARK, 1)))
        if rows:
            seen = at_the_mark(clip, features[rows], marked, options)
            values[rows] = _same(seen, [own[i] for i in rows])
        found[element] = values
    return found


def _objects(clip, features, named: Sequence[Named]) -> dict[str, np.ndarray]:
    texts = [f"a {name} on the {side}" for name in ALL_OBJECTS for side in ("left", "right")]
    means = clip.text_features(texts).reshape(len(ALL_OBJECTS), 2, -1).mean(1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    order = np.argsort(-(features @ means.T), axis=1)[:, :LIKELY]
    there, extra = np.full((2, len(named)), np.nan)
    for i, each in enumerate(named):
        likely = [ALL_OBJECTS[place] for place in order[i]]
        if each.objects:
            there[i] = np.mean([name in likely for name in each.objects])
        if any(name != "none" for name in OBJECTS.get(each.place, ())):
            extra[i] = likely[0] not in {*each.objects, *OBJECTS[each.place]}
    return {"objects": there, EXTRA: extra}
