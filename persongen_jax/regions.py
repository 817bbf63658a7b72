"""Several people in one picture: who of the references is who, and where each may appear."""

import numpy as np

from data_pipeline.schema import MAX_REFERENCES


def check_people(references, regions, count: int) -> list[list[list]]:
    """For each prompt, for each person, a list of one to four references.

    Args:
        references: for each prompt a list of images (one person), or a list of such lists.
        regions: for each prompt a list of masks, one per person; or None.
        count: of prompts.

    Raises:
        ValueError: an image where a list belongs; numbers that do not go together; several
            people without regions.
    """
    _check_list(references)
    for name, given in (("references", references), ("regions", regions)):
        if given is not None and len(given) != count:
            raise ValueError(f"{len(given)} lists of {name} for {count} prompts: give one each")
    people = [_persons(own) for own in references]
    for persons in people:
        for images in persons:
            if not 1 <= len(images) <= MAX_REFERENCES:
                raise ValueError(f"{len(images)} references: give one to {MAX_REFERENCES}")
    if regions is None:
        most = max(map(len, people))
        if most > 1:
            raise ValueError(
                f"references of {most} people: give regions too, a mask for each, or everyone "
                "would be mixed everywhere"
            )
        return people
    for persons, masks in zip(people, regions, strict=True):
        if len(masks) != len(persons):
            raise ValueError(f"{len(masks)} regions for {len(persons)} people: give one each")
    return people


def _check_list(given):
    # An array has a length as a list has, and its rows would be taken for pictures.
    if not isinstance(given, (list, tuple)):
        raise ValueError(
            f"references: {type(given).__name__} where a list belongs; give for each prompt a list "
            "of face crops, references=[[face]] for one face"
        )


def _persons(own) -> list[list]:
    _check_list(own)
    nested = [isinstance(entry, (list, tuple)) for entry in own]
    if not any(nested):
        return [list(own)]
    if not all(nested):
        raise ValueError(
            "references of one prompt: give images of one person, or a list of images for each "
            "person, not both beside each other"
        )
    return [list(images) for images in own]


def region_arrays(regions, people, height: int, width: int) -> np.ndarray:
    """[prompts, p, height, width] float32 in 0..1; p is the most people of a prompt.

    Places of people who are not there hold 0.
    """
    out = np.zeros((len(regions), max(map(len, people)), height, width), np.float32)
    for row, masks in enumerate(regions):
        for column, mask in enumerate(masks):
            out[row, column] = to_region(mask, height, width)
    return out


def to_region(mask, height: int, width: int) -> np.ndarray:
    """A mask of any size, averaged down (or repeated up) to [height, width] float32 in 0..1.

    Args:
        mask: a PIL image, of which white is 1 and black is 0; bool [h, w]; or float [h, w] in 0..1.
    """
    from PIL import Image

    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L"), np.float32) / 255
    mask = np.asarray(mask)
    if mask.ndim != 2 or not (mask.dtype == bool or np.issubdtype(mask.dtype, np.floating)):
        raise ValueError(
            f"a region of {mask.dtype} {mask.shape}: give a PIL image, or an array [h, w], bool or "
            "float in 0..1"
        )
    mask = mask.astype(np.float32)
    if not np.all((mask >= 0) & (mask <= 1)):
        raise ValueError(f"a region with values {mask.min():g} to {mask.max():g}: 0 to 1 are usual")
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BOX))
