"""Opens data sets of images with attributes by the name in a config."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.attributes import digits, drawn_faces, tfds_sets
from data_pipeline.attributes.folder import describe_folder, open_folder
from data_pipeline.attributes.labelled import AttributeData, Description, choose_attributes

# What is known about a data set without opening it: images of some size.
KNOWN = {
    "digits": lambda size: Description(digits.VOCABULARY, digits.SHAPE),
    "drawn_faces": drawn_faces.describe,
    "mnist": lambda size: Description(tfds_sets.MNIST, (size, size, 1)),
    "celeb_a": lambda size: Description(tfds_sets.CELEB_A, (size, size, 3)),
}
NAMES = tuple(KNOWN)
BY_TFDS = ("mnist", "celeb_a")
COLOUR = 3  # channels; also the default


def describe_attribute_data(
    data: str, *, size: int, attributes: Sequence[str] = (), csv: str = "", channels: int = 3
) -> Description:
    """The description of a data set, without its images; for a folder the table is read.

    Arguments and errors as for open_attribute_data.
    """
    _check(data, size, csv, channels)
    if data in KNOWN:
        found = KNOWN[data](size)
    else:
        found = describe_folder(data, size=size, csv=csv, channels=channels)
    if attributes:
        return dataclasses.replace(found, vocabulary=found.vocabulary.choose(attributes)[0])
    return found


def open_attribute_data(
    data: str,
    *,
    size: int,
    attributes: Sequence[str] = (),
    csv: str = "",
    channels: int = 3,
    data_dir: str = "",
    download: bool = False,
) -> AttributeData:
    """Open a data set.

    Args:
        data: a name of ``NAMES``, or a folder with images and their table (folder.py).
        size: of its images, in pixels; "digits" are 8.
        attributes: names of the attributes to read; () for all.
        csv: for a folder, the table, if there are several.
        channels: of a folder's images, 1 or 3.
        data_dir: where tensorflow-datasets keeps "mnist" and "celeb_a"; "" for its default.
        download: whether tensorflow-datasets may download missing data.

    Raises:
        ValueError: an unknown name, or unusable data; the message has the remedy.
    """
    _check(data, size, csv, channels)
    given = {"data_dir": data_dir, "download": download}
    idle = [name for name, value in given.items() if value and data not in BY_TFDS]
    if idle:
        raise ValueError(
            f"config.{idle[0]}={given[idle[0]]!r} has no effect on {data}; leave it out"
        )
    if data == "digits":
        found = digits.open_digits()
    elif data == "drawn_faces":
        found = drawn_faces.open_drawn_faces(size)
    elif data == "mnist":
        found = tfds_sets.open_mnist(size, data_dir, download=download)
    elif data == "celeb_a":
        found = tfds_sets.open_celeb_a(size, data_dir, download=download)
    else:
        found = open_folder(data, size=size, csv=csv, channels=channels)
    if found.terms:
        print(f"{data}: {found.terms}")
    return choose_attributes(found, attributes) if attributes else found


def _check(data: str, size: int, csv: str, channels: int) -> None:
    """ValueError for impossible values, or values without effect."""
    if data not in KNOWN and not Path(data).is_dir():
        raise ValueError(
            f"config.data={data!r} is neither a folder nor one of {', '.join(NAMES)}; check the "
            "path"
        )
    if size < 1:
        raise ValueError(f"config.size={size}: images have at least 1 pixel")
    if data == "digits" and size != digits.SHAPE[0]:
        raise ValueError(f"config.size={size}: the digits are images of 8x8; set it to 8")
    if csv and data in KNOWN:
        raise ValueError(f"config.csv={csv!r} has no effect on {data}; leave it out")
    if channels != COLOUR and data in KNOWN and KNOWN[data](size).shape[2] != channels:
        raise ValueError(f"config.channels={channels}: {data} is in colour; leave it out")
