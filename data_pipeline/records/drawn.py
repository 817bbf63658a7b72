"""Drawn people as records, with the ground truth that only a drawing has."""

from collections.abc import Iterable
from typing import Any

from data_pipeline.drawing.captions import TRIGGER
from data_pipeline.drawing.portrait import People
from data_pipeline.prompts import split_at_trigger
from data_pipeline.records.schema import Record

GROUPS = ("skin", "hair", "age")  # attributes by which figures are grouped


def records_of(drawn: People, images: list[str], trigger_word: str = TRIGGER) -> list[Record]:
    """A Record per picture, with its ground truth; ``images`` are their names."""
    records = []
    for i, image in enumerate(images):
        before, after = split_at_trigger(drawn.captions[i], TRIGGER)
        records.append(
            Record(
                image=image,
                identity=str(drawn.identity[i]),
                caption=f"{before} {trigger_word}{after}",
                background=drawn.backgrounds[i],
                body=drawn.bodies[i],
                face_box=plain_numbers(drawn.face_box[i]),
                class_word=str(drawn.attributes["class_word"][i]),
                landmarks=tuple(map(plain_numbers, drawn.landmarks[i])),
                keypoints=tuple(map(plain_numbers, drawn.keypoints[i])),
                visibility=tuple(drawn.visibility[i].tolist()),
                group=group_of(drawn, i),
            )
        )
    return records


def group_of(drawn: People, i: int) -> dict[str, str]:
    """The groups that the person of picture ``i`` belongs to."""
    return {name: str(drawn.attributes[name][i]) for name in GROUPS}


def plain_numbers(values: Iterable[float]) -> tuple[Any, ...]:
    """Plain numbers in pixels; a thousandth of one is more than anybody can use."""
    return tuple(round(float(value), 3) for value in values)
