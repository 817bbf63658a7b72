"""Data sets of pictures with attributes, by the name that a config gives them."""

from pathlib import Path

from data_pipeline.attributes.digits import open_digits
from data_pipeline.attributes.drawn_faces import open_drawn_faces
from data_pipeline.attributes.folder import open_folder
from data_pipeline.attributes.labelled import AttributeData, choose_attributes
from data_pipeline.attributes.tfds_sets import open_celeb_a, open_mnist

NAMES = ("digits", "drawn_faces", "mnist", "celeb_a")


def open_attribute_data(
    data: str,
    *,
    size: int,
    attributes=(),
    csv: str = "",
    channels: int = 3,
    data_dir: str = "",
    download: bool = False,
) -> AttributeData:
    """A data set.

    Args:
        data: a name of ``NAMES``, or a folder with pictures and their table (folder.py).
        size: of its pictures, in pixels; "digits" are 8, whatever it is.
        attributes: names of those that are read; () for all.
        csv: of a folder, the table, if not the only one in it.
        channels: of a folder's pictures, 1 or 3.
        data_dir: where tensorflow-datasets keeps "mnist" and "celeb_a"; "" for its own place.
        download: whether tensorflow-datasets may fetch what is not there.

    Raises:
        ValueError: an unknown name, or data that cannot be used; the message says what to do.
    """
    if data == "digits":
        found = open_digits()
    elif data == "drawn_faces":
        found = open_drawn_faces(size)
    elif data == "mnist":
        found = open_mnist(size, data_dir, download=download)
    elif data == "celeb_a":
        found = open_celeb_a(size, data_dir, download=download)
    elif Path(data).is_dir():
        found = open_folder(data, size=size, csv=csv or None, channels=channels)
    else:
        raise ValueError(
            f"config.data={data!r} is neither a folder nor one of {', '.join(NAMES)}; check the "
            "path"
        )
    if found.terms:
        print(f"{data}: {found.terms}")
    return choose_attributes(found, attributes) if attributes else found
