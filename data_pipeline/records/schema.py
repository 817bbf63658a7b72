"""The data model: a Record per image; examples and batches are made from it.

An **example** is a flat dict of arrays, what its fields make of a record
(data_pipeline/examples/fields.py); a **batch** is a nested dict of such arrays [b, ...]:
"input_ids/text" is ``batch["input_ids"]["text"]``. How many references an example has, or whether
it has a face box, is data and not a shape: shapes never change within a run, but for the target's,
which is one of a few where a config has buckets (data_pipeline/examples/buckets.py). With a
feature cache (persongen_jax/features/) a batch brings what frozen networks made of some fields in
their place.
"""

from dataclasses import dataclass, fields

MAX_REFERENCES = 4


@dataclass(frozen=True)
class Record:
    """One image of one person.

    ``image`` names the image: a path to the file, or a key for the source of the records
    (data_pipeline/records/sources.py). ``caption`` has the trigger word after the class word ("a
    man img in a space suit"); ``background`` and ``body`` are plain texts.

    Boxes are (x0, y0, x1, y1), points (x, y), both in pixels of the upright image: the face box, 5
    ``landmarks`` in ArcFace's order, 12 ``keypoints`` (COCO's 5 to 16) and whether each of them is
    visible. An image that is only a part of an original has the ``original_size`` (height, width)
    and the ``crop`` (box in the original's pixels) that it shows, perhaps at another scale; without
    a crop it shows the whole. None, or "", means unknown.

    ``group`` are the groups that the person belongs to, {"age": "old"}; figures are shown by them.
    ``images`` names additional images that belong to this one, {"pose": path}; ``extra`` holds the
    source's other keys for the fields that read them.
    """

    image: str
    identity: str
    caption: str
    background: str = ""
    body: str = ""
    face_box: tuple[float, float, float, float] | None = None
    class_word: str = ""
    landmarks: tuple[tuple[float, float], ...] | None = None
    keypoints: tuple[tuple[float, float], ...] | None = None
    visibility: tuple[bool, ...] | None = None
    original_size: tuple[int, int] | None = None
    crop: tuple[float, float, float, float] | None = None
    group: dict[str, str] | None = None
    images: dict[str, str] | None = None
    extra: dict[str, object] | None = None


def to_entry(record: Record) -> dict:
    """The record for JSON, without unknown values."""
    entry = {field.name: getattr(record, field.name) for field in fields(Record)}
    return {name: value for name, value in entry.items() if value is not None and value != ""}


def from_entry(entry: dict) -> Record:
    """to_entry's record, from JSON's lists; a key that Record does not have is a TypeError."""
    plain = {name: _tuples(value) for name, value in entry.items() if name != "extra"}
    return Record(**plain, extra=entry.get("extra"))


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


# Parts of a caption for which a record has its own keys.
PARTS = ("background", "body")
# Keys of the manifest that are not in a record's ``extra``.
OWN = frozenset(field.name for field in fields(Record)) - {"images", "extra"}
