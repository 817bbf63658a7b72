"""Prompts of published evaluations: (general, background, body) each, with the trigger word "img".

``THESIS`` is copied verbatim from the thesis (section 4). ``PHOTOMAKER`` follows the six factors of
PhotoMaker's appendix (arXiv 2312.04461): clothing, accessory, action, expression, view, background.
Its prompts were not released as a file, and the wording here is ours. The paper lists sunglasses
twice, as an accessory and as an expression; here they occur once, which makes forty.
"""

TRIGGER = "img"

THESIS = (
    (
        "Photo of a person img looking into the camera.",
        "Daytime, 3 mountains in the background, a medieval castle can be seen on the far right "
        "mountain.",
        "The person is wearing a black cloak and red hat.",
    ),
    (
        "A photo of an angry businessman img looking into the camera.",
        "He is in the street of a big city: to the left behind him is a bank building with a big "
        'sign above it saying "Neon Bank".',
        "He is in a yellow suit, talking on the phone.",
    ),
    (
        "A photo of a man img, his face is seen very surprised.",
        "He is in the desert near Oasis with lake, palm trees and a couple of camels behind him.",
        "The man is in a space suit.",
    ),
    (
        "A photo of a middle-aged man img looking at the viewer.",
        "He is in a room with white walls, there is a portrait behind him and a books on a shelf.",
        "The man is in a dark green sweater.",
    ),
)

_PHOTO = "a photo of a {word} img"
_WEARING = (
    "a Superman costume",
    "a spacesuit",
    "a red sweater",
    "a purple wizard's robe",
    "a blue hoodie",
    "headphones",
    "headphones, with red hair",
    "a Christmas hat",
    "sunglasses",
    "sunglasses and a necklace",
    "a blue cap",
    "a doctoral cap",
    "glasses, with white hair",
)
_DOING = (
    ("riding a motorcycle", "", "{he} is wearing a helmet and a vest"),
    ("holding a bottle of red wine", "", ""),
    ("driving a bus", "in the desert", ""),
    ("playing basketball", "", ""),
    ("playing the violin", "", ""),
    ("piloting a spaceship", "", ""),
    ("riding a horse", "", ""),
    ("writing code in front of a computer", "", ""),
    ("playing the guitar", "", ""),
    ("laughing", "on a lawn", ""),
    ("frowning at the camera", "", ""),
    ("smiling happily and looking at the camera", "", ""),
    ("crying with disappointment, tears running down {his} face", "", ""),
    ("playing the guitar, seen from the left", "", ""),
    ("holding a bottle of red wine, upper body", "", ""),
    ("in close-up, seen from the right", "", "{he} is wearing sunglasses and a necklace"),
    ("riding a horse, seen from above", "", ""),
    ("from the left, upper body", "", "{he} is wearing a doctoral cap"),
    ("crying with disappointment, the left side of {his} face turned to the camera", "", ""),
    (
        "sitting in front of the camera",
        "a beautiful purple sunset at the beach in the background",
        "",
    ),
    ("swimming", "in a pool", ""),
    ("climbing", "on a mountain", ""),
    ("skiing", "on a snowy mountain", ""),
    ("in the snow", "", ""),
    ("in space", "", "{he} is wearing a spacesuit"),
)

PHOTOMAKER = (
    (_PHOTO, "", ""),
    ("a photo of a {word} img with red hair", "", ""),
    *((_PHOTO, "", f"{{he}} is wearing {clothes}") for clothes in _WEARING),
    *((f"{_PHOTO} {doing}", where, body) for doing, where, body in _DOING),
)

PROMPT_SETS = {"thesis": THESIS, "photomaker": PHOTOMAKER}
