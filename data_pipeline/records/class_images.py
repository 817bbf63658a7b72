"""Images of a class, shown with one person's: prior preservation (arXiv 2208.12242, section 3.2).

DreamBooth shows images of the class ("a photo of a woman") with those of the person, so that the
class keeps its meaning. Trainers also call them regularisation images. Each is an example of its
own, with a weight; a batch is any mixture of both.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from data_pipeline.pictures.listing import list_images
from data_pipeline.records.schema import Record
from data_pipeline.text_files import read_text

CAPTION_FILES = (".txt", ".caption")
CLASS = "class image"  # the key of ``extra`` that marks one
REPEATS, WEIGHT = "repeats", "weight"  # keys of the manifest


class ClassImageError(ValueError):
    """A folder of class images that cannot be used; the message names it and the remedy."""


def missing_images(folder: str | Path, wanted: int) -> int:
    """How many images a folder lacks to have ``wanted``; it need not exist."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ClassImageError(f"{path}: is a file; class images are a folder")
    return max(0, wanted - (len(list_images(path)) if path.is_dir() else 0))


def class_records(folder: str | Path, prompt: str) -> list[Record]:
    """A record per image of the folder, in the order of their names.

    Args:
        prompt: the caption of images without a text file of their own next to them.

    Raises:
        ClassImageError: no such folder, no image, or one without a caption.
    """
    path = Path(folder)
    files = list_images(path) if path.is_dir() else []
    if not files:
        raise ClassImageError(
            f"{path}: no class images; give the folder of some, or config.class_prompt and "
            "config.num_class_images, by which they are generated"
        )
    records = []
    for file in files:
        image = path / file
        own = next((t for end in CAPTION_FILES if (t := image.with_suffix(end)).is_file()), None)
        caption = " ".join(read_text(own).split()) if own else prompt.strip()
        if not caption:
            raise ClassImageError(
                f"{own or image}: no caption; write {image.stem}.txt, or give config.class_prompt"
            )
        # Not the folder's path: a run may go on after it has moved.
        records.append(Record(str(image), CLASS, caption, extra={CLASS: True}))
    return records


def is_class_image(record: Record) -> bool:
    """Whether it is one of :func:`class_records`."""
    return bool((record.extra or {}).get(CLASS))


def repeated(records: Sequence[Record]) -> list[Record]:
    """Each record as often as the manifest's key ``repeats`` says; once without it.

    Raises:
        ClassImageError: repeats that are no whole number of at least 1.
    """
    out = []
    for record in records:
        times = (record.extra or {}).get(REPEATS, 1)
        if type(times) is not int or times < 1:
            raise ClassImageError(
                f"{record.image}: repeats is {times!r}; give a whole number, 1 or more"
            )
        out += [record] * times
    return out


def with_class_images(
    own: Sequence[Record], others: Sequence[Record], prior_loss_weight: float
) -> list[Record]:
    """The person's images and the class' in turn, as many of either: what an epoch shows.

    The shorter list is gone through again. Weights make the loss' mean that of the paper: the mean
    over the person's images plus ``prior_loss_weight`` times that over the class'.

    Args:
        own: of the person, repeats included; their own weights stay, as factors.
    """
    count = max(len(own), len(others))
    # Each kind is half of the examples, so a weight of 2 makes its half a mean of its own.
    own, others = _weighted(own, 2.0), _weighted(others, 2.0 * prior_loss_weight)
    pairs = zip(_cycled(own, count), _cycled(others, count), strict=True)
    return [record for pair in pairs for record in pair]


def _weighted(records, factor):
    """The records with weights of ``factor`` times theirs; what is no number stays, for the field
    that reads it to refuse."""
    out = []
    for record in records:
        extra = record.extra or {}
        weight = extra.get(WEIGHT, 1.0)
        weight = factor * weight if type(weight) in (int, float) else weight
        out.append(replace(record, extra={**extra, WEIGHT: weight}))
    return out


def _cycled(records, count):
    return [records[i % len(records)] for i in range(count)]


def either(own: Callable, other: Callable, others: Sequence[Record]) -> Callable:
    """A function of an image's name: ``other`` for the images of ``others``, else ``own``."""
    names = {record.image for record in others}
    return lambda name: (other if name in names else own)(name)
