"""Describes an image: three captions per image from a small closed vocabulary.

General ("a photo of a smiling man img looking at the camera"; wider framings are named: "a
half-length photo"), background ("mountains in the
background, ...") and body ("he is wearing a black cloak and a red hat"). The phrasing varies from
image to image; the content is always true.
"""

import re

import numpy as np

from data_pipeline.drawing.identities import (
    AGES,
    BEARDS,
    CLASS_WORDS,
    GLASSES,
    HAIR_STYLES,
    SKIN_GROUPS,
    Identities,
)
from data_pipeline.drawing.pictures import (
    CLOTHES,
    COLOUR_NAMES,
    EXPRESSIONS,
    FRAMINGS,
    GAZES,
    HATS,
    OBJECTS,
    SCENES,
    SUNSET_SCENES,
    WORDINGS,
    Pictures,
)

TRIGGER = "img"

GENERAL = (
    "a {length}photo of {a_look} {trigger}{gaze}",
    "{length}photo of {a_look} {trigger}{gaze}",
    "a {length}portrait of {a_look} {trigger}{gaze}",
    "a {length}photo of {a_word} {trigger}{gaze}, {his} face is {mood}",
    "a {length}photo of {a_word} {trigger}, {his} face is seen {mood}",
)
LENGTHS = {"portrait": "", "half": "half-length ", "full": "full-length "}
GAZE = {
    "camera": ("", " looking at the camera", " looking into the camera", " looking at the viewer"),
    "left": (" looking to the left",),
    "right": (" looking to the right",),
}
MOODS = {
    "neutral": ("calm", "relaxed"),
    "smiling": ("smiling", "happy"),
    "laughing": ("laughing", "very happy"),
    "surprised": ("surprised", "very surprised"),
    "angry": ("angry", "very angry"),
    "sad": ("sad", "very sad"),
}
BODY = (
    "{he} is wearing {clothes}{hat_too}{doing}",
    "the {word} is wearing {clothes}{hat_too}{doing}",
    "{he} is in {clothes}{hat_apart}{doing}",
    "the {word} is in {clothes}{hat_apart}{doing}",
)
DOING = {"arms down": "", "hands on hips": ", hands on hips", "waving": ", waving"}
DOING["phone"] = ", talking on the phone"
# {side}: where the scene's first object is, {other}: the other side.
BACKGROUND = {
    "mountains": (
        "{time}mountains in the background, a castle on the far {side} mountain",
        "{time}3 mountains in the background, a medieval castle can be seen on the far {side} "
        "mountain",
        "{time}mountains with a castle to the {side}",
    ),
    "city": (
        "{time}{he} is in the street of a big city: to the {side} behind {him} is a bank building "
        'with a big sign above it saying "neon bank"',
        "{time}a city street with a bank building with a neon sign to the {side}",
        "{time}in a big city, a bank with a big sign on the {side}",
    ),
    "desert": (
        "{time}{he} is in the desert near oasis with lake, palm trees and a couple of camels "
        "behind {him}",
        "{time}a desert with an oasis lake and palm trees to the {side} and camels to the {other}",
        "{time}in the desert, camels on the {other} and palm trees by a lake on the {side}",
    ),
    "room": (
        "{he} is in a room with white walls, there is a portrait behind {him} and books on a shelf",
        "a room with white walls, a portrait to the {side} and a shelf with books to the {other}",
        "a white room with a bookshelf on the {other} and a portrait on the {side}",
    ),
    "beach": (
        "{time}a beach with a red umbrella to the {side} and a sailing boat to the {other}",
        "{time}{he} is on the beach by the sea, there is an umbrella to the {side} behind {him}",
        "{time}the sea, a beach and a boat on the {other}",
    ),
    "forest": (
        "a forest with tall trees and red mushrooms",
        "{he} is in a dark green forest, there are trees behind {him}",
        "in the forest between the trees",
    ),
    "snowy night": (
        "a snowy night with the moon to the {side} and a house with a lit window to the {other}",
        "{he} is in the snow at night, there is a house to the {other} behind {him}",
        "night, snow, trees and the moon on the {side}",
    ),
    "park": (
        "{time}a park with trees and a red bench to the {side}",
        "{time}{he} is in a park, there is a red bench to the {side} behind {him} and flowers to "
        "the {other}",
        "{time}in the park, green grass, trees and a bench on the {side}",
    ),
    "space": (
        "space with stars, the earth to the {side} and a planet with a ring to the {other}",
        "{he} is in space, there is the earth to the {side} behind {him}",
        "in space between stars, a planet with a ring on the {other}",
    ),
    "stage": (
        "a stage with red curtains and a microphone to the {other}",
        "{he} is on a stage, there are red curtains behind {him}",
        "on the stage, a microphone on the {other} and red curtains",
    ),
}
TIMES = {False: ("", "daytime, "), True: ("at sunset, ", "sunset, ")}
FIRST_ON_RIGHT = ("mountains",)  # where the castle, the first object, is drawn
TIMELESS = tuple(scene for scene in SCENES if scene not in SUNSET_SCENES)
PRONOUNS = {"man": ("he", "his", "him"), "boy": ("he", "his", "him")}
PRONOUNS |= {"woman": ("she", "her", "her"), "girl": ("she", "her", "her")}
PRONOUNS["person"] = ("the person", "the", "the person")
BUSINESS = {"man": "businessman", "woman": "businesswoman"}
AGED = ("young", "middle-aged", "old")


def captions_of(
    people: Identities, pictures: Pictures, doing: np.ndarray
) -> tuple[list, list, list]:
    """General, background and body captions; ``doing`` [n] are the visible parts of poses."""
    general, background, body = [], [], []
    for i in range(len(people)):
        draw = dict(zip(WORDINGS, pictures.wording[i], strict=True))
        word = CLASS_WORDS[people.class_word[i]]
        general.append(_general(people, pictures, i, word, draw))
        background.append(_background(pictures, i, word, draw))
        body.append(_body(pictures, i, word, doing[i], draw))
    return general, background, body


def _general(people, pictures, i, word, draw):
    noun = word
    if CLOTHES[pictures.clothes[i]] == "suit" and word in BUSINESS and draw["noun"] < 0.35:
        noun = BUSINESS[word]
    age = AGES[people.age[i]]
    if age in AGED and noun == word and draw["age"] < 0.3:
        noun = f"{age} {noun}"
    mood = EXPRESSIONS[pictures.expression[i]]
    feeling = _pick(MOODS[mood], draw["mood"])
    # A neutral face is usually not mentioned.
    named = mood != "neutral" or draw["feeling"] < 0.3
    return _pick(GENERAL, draw["general"]).format(
        length=LENGTHS[FRAMINGS[pictures.framing[i]]],
        a_look=_article(f"{feeling} {noun}" if named else noun),
        a_word=_article(noun),
        trigger=TRIGGER,
        his=PRONOUNS[word][1],
        mood=feeling,
        gaze=_pick(GAZE[GAZES[pictures.gaze[i]]], draw["gaze"]),
    )


def _body(pictures, i, word, doing, draw):
    clothes = f"{COLOUR_NAMES[pictures.clothes_colour[i]]} {CLOTHES[pictures.clothes[i]]}"
    hat = HATS[pictures.hat[i]]
    hat = "" if hat == "none" else _article(f"{COLOUR_NAMES[pictures.hat_colour[i]]} {hat}")
    return _pick(BODY, draw["body"]).format(
        he=PRONOUNS[word][0],
        word=word,
        clothes=_article(clothes),
        hat_too=hat and f" and {hat}",
        hat_apart=hat and f", wearing {hat}",
        doing=DOING[doing],
    )


def _background(pictures, i, word, draw):
    he, _, him = PRONOUNS[word]
    scene = SCENES[pictures.scene[i]]
    right = (scene in FIRST_ON_RIGHT) != bool(pictures.mirrored[i])
    side, other = ("right", "left") if right else ("left", "right")
    time = "" if scene in TIMELESS else _pick(TIMES[bool(pictures.sunset[i])], draw["time"])
    phrase = _pick(BACKGROUND[scene], draw["background"])
    return phrase.format(he=he, him=him, side=side, other=other, time=time)


def _pick(options, draw):
    return options[min(int(draw * len(options)), len(options) - 1)]


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def words_of(text: str) -> list[str]:
    """Lower-case words of a text, without punctuation."""
    return re.findall(r"[a-z0-9-]+", text.lower())


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption can contain, sorted."""
    texts = [*GENERAL, *BODY, *DOING.values(), *HATS[1:], *CLOTHES, *COLOUR_NAMES, *CLASS_WORDS]
    texts += [*LENGTHS.values(), *AGED, *BUSINESS.values(), TRIGGER, "a an left right"]
    for table in (GAZE, MOODS, BACKGROUND, TIMES, PRONOUNS):
        texts += [phrase for phrases in table.values() for phrase in phrases]
    plain = re.sub(r"\{\w+\}", " ", " ".join(texts))
    return tuple(sorted(set(words_of(plain))))


def labels_of(people: Identities, pictures: Pictures, doing: np.ndarray) -> dict[str, np.ndarray]:
    """The structured truth behind the captions: one array [n] of names per label.

    ``left_object`` and ``right_object`` are the scene's, on that side of the image, or "none".
    """
    objects = np.array([OBJECTS[name] for name in SCENES])[pictures.scene]
    objects = np.where(pictures.mirrored[:, None], objects[:, ::-1], objects)
    return {
        "class_word": np.array(CLASS_WORDS)[people.class_word],
        "age": np.array(AGES)[people.age],
        "skin": np.array([*SKIN_GROUPS])[
            np.searchsorted([*SKIN_GROUPS.values()], people.skin, side="right") - 1
        ],
        "hair": np.array(HAIR_STYLES)[people.hair],
        "beard": np.array(BEARDS)[people.beard],
        "glasses": np.array(GLASSES)[people.glasses],
        "framing": np.array(FRAMINGS)[pictures.framing],
        "expression": np.array(EXPRESSIONS)[pictures.expression],
        "gaze": np.array(GAZES)[pictures.gaze],
        "scene": np.array(SCENES)[pictures.scene],
        "left_object": objects[:, 0],
        "right_object": objects[:, 1],
        "mirrored": pictures.mirrored,
        "sunset": pictures.sunset,
        "clothes": np.array(CLOTHES)[pictures.clothes],
        "clothes_colour": np.array(COLOUR_NAMES)[pictures.clothes_colour],
        "hat": np.array(HATS)[pictures.hat],
        "hat_colour": np.where(
            pictures.hat > 0, np.array(COLOUR_NAMES)[pictures.hat_colour], "none"
        ),
        "doing": np.asarray(doing),
    }
