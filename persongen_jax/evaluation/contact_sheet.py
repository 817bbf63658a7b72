"""Contact sheets: a row per person and prompt, with the reference left of the generated images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MAX_ROWS = 40  # per sheet
LARGEST_TILE = 192  # pixels; larger images are scaled down
SMALLEST_TILE = 128  # smaller ones are scaled up to leave room for the text
LABEL_HEIGHT, GAP = 14, 2
PAPER, INK = (255, 255, 255), (0, 0, 0)


class Row(NamedTuple):
    """label: one line of text; reference: uint8 [h, w, 3]; images: several such arrays.

    person, prompt: whose the images are and what they should show, "" if that is nothing in words.
    """

    label: str
    reference: np.ndarray
    images: list
    person: str = ""
    prompt: str = ""


def choose_rows(people: int, prompts: int, limit: int = MAX_ROWS) -> list[tuple[int, int]]:
    """(person, prompt) of each row, person by person.

    With more rows than ``limit``, first everyone loses the last prompts, then the last people go.
    """
    prompts = max(1, min(prompts, limit // max(1, people)))
    rows = [(person, prompt) for person in range(people) for prompt in range(prompts)]
    return rows[:limit]


def contact_sheet(rows: list[Row], titles: Sequence[str] = ()) -> np.ndarray:
    """The sheet as uint8 [h, w, 3], with each row's text above the row.

    ``titles``: of the columns, starting with the reference's; they are above all rows.
    """
    if not rows:
        raise ValueError("no rows: a contact sheet shows at least one person")
    side = max(max(np.shape(image)[:2]) for row in rows for image in row.images)
    side = min(max(side, SMALLEST_TILE), LARGEST_TILE)
    columns = 1 + max(len(row.images) for row in rows)
    pitch = side + LABEL_HEIGHT + GAP
    # The reference is set apart, so that nobody mistakes it for a result.
    places = [GAP + (side + GAP) * i + (3 * GAP if i else 0) for i in range(columns)]
    head = LABEL_HEIGHT if titles else 0
    size = (places[-1] + side + GAP, head + pitch * len(rows) + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for left, title in zip(places, titles, strict=False):
        draw.text((left, 1), _fit(title, draw, font, side), INK, font)
    for i, row in enumerate(rows):
        top = head + pitch * i
        draw.text((places[0], top + 1), _fit(row.label, draw, font, sheet.width), INK, font)
        for left, image in zip(places, [row.reference, *row.images], strict=False):
            sheet.paste(_tile(image, side), (left, top + LABEL_HEIGHT))
    return np.asarray(sheet)


def _tile(image, side: int) -> Image.Image:
    """The whole image, centred within a square."""
    image = Image.fromarray(np.asarray(image))
    scale = side / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    tile = Image.new("RGB", (side, side), PAPER)
    corner = ((side - size[0]) // 2, (side - size[1]) // 2)
    tile.paste(image.resize(size, Image.Resampling.BICUBIC), corner)
    return tile


def _fit(text: str, draw, font, width: int) -> str:
    """As much of the text as fits."""
    # The built-in font lacks most of Unicode and would draw boxes instead.
    text = text.encode("ascii", "replace").decode()
    if draw.textlength(text, font) <= width - 2 * GAP:
        return text
    while text and draw.textlength(text + "...", font) > width - 2 * GAP:
        text = text[:-1]
    return text + "..."
