"""Real pictures of people: what a method read (references), and others (real)."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from data_pipeline.pictures.reading import ImageError, load_image
from data_pipeline.records.folders import read_folder
from data_pipeline.records.groups import Group, join_groups
from data_pipeline.records.manifest import FILE_NAME
from data_pipeline.records.names import plain_name
from data_pipeline.records.shard_reading import is_shards
from data_pipeline.records.sources import PEOPLE, open_records
from persongen_jax.evaluation.folders.pictures import Picture, decode
from persongen_jax.evaluation.folders.sidecars import listed
from persongen_jax.metrics.base import Known, Owner, People

Real = dict[str, list[Picture]]
"""Pictures by person."""


def read_people(spec: str) -> tuple[Real, list[str], dict[str, Group]]:
    """The pictures of a source, sentences about it, people's groups; none is decoded yet.

    Args:
        spec: DIR/PERSON/*, any other folder of data_pipeline/records/folders.py, one with a
            manifest or shards, or drawn people ("people:out_of_train?identities=4&pictures=4").

    Raises:
        ValueError: no such folder, or one that cannot be read.
    """
    found: Real = {}
    if spec.startswith(PEOPLE) or (Path(spec) / FILE_NAME).is_file() or is_shards(spec):
        records, read = open_records(spec, marked=False, least=1)
        said: dict[str, list[Group | None]] = {}
        for record in records:
            said.setdefault(plain_name(record.identity), []).append(record.group)
            picture = Picture(record.image, functools.partial(read, record.image))
            found.setdefault(plain_name(record.identity), []).append(picture)
        return found, [], {who: join_groups(each, who) for who, each in said.items()}
    folder = read_folder(spec)
    for image in folder.images:
        found.setdefault(image.identity, []).append(of_file(image.path))
    return found, [f"{spec}: {note}" for note in folder.notes], {}


def of_file(path: str) -> Picture:
    """A picture in a file of its own."""
    return Picture(path, functools.partial(load_image, path))


def decodable(*sources: Real) -> tuple[list[Real], dict[str, str], int]:
    """The pictures that can be decoded; why others cannot; and how many are copies of an earlier.

    A person's picture counts once, in the first of the sources that has it. People keep their
    places, also without pictures.
    """
    kept: list[Real] = []
    excluded: dict[str, str] = {}
    seen: set[tuple[str, bytes]] = set()
    copies = 0
    for source in sources:
        kept.append({})
        for person, pictures in source.items():
            own = kept[-1].setdefault(person, [])
            for picture, found in zip(pictures, decode(pictures), strict=True):
                if isinstance(found, ImageError):
                    excluded[picture.name] = str(found)
                elif (person, found) in seen:
                    copies += 1
                else:
                    seen.add((person, found))
                    own.append(picture)
    return kept, excluded, copies


def known_people(
    name: str,
    people: Iterable[str],
    references: Real,
    real: Real,
    others: Real,
    groups: Mapping[str, Group] | None = None,
) -> Known:
    """What metrics know about these people: their real pictures, the references first.

    Args:
        groups: of people, where they are known.
        others: the gallery; {} for none.
    """
    groups = groups or {}
    owners = [
        _owner(who, references.get(who, []), real.get(who, []), groups.get(who)) for who in people
    ]
    gallery = [_owner(who, [], pictures) for who, pictures in others.items()]
    return Known(name, People(lambda: owners), People(lambda: gallery))


def lacking(people: dict[str, int], real: Real, what: str) -> list[str]:
    """A sentence about people without pictures and pictures of nobody's images, if there are any.

    Args:
        people: number of images by person.
        what: "reference" or "real picture".
    """
    without = [f"{who} ({n} images)" for who, n in people.items() if not real.get(who)]
    idle = [who for who, pictures in real.items() if pictures and who not in people]
    said = [f"no {what} of {', '.join(without)}: left out where one is needed"] if without else []
    if idle:
        said.append(f"{len(idle)} people have a {what} and no image: {listed(idle)}")
    return said


def _owner(
    name: str, references: list[Picture], others: list[Picture], group: Group | None = None
) -> Owner:
    everything = [*references, *others]
    pictures = functools.partial(_read_first, everything)
    return Owner(name, lambda: _read_first(references), pictures, group or {})


def _read_first(pictures: list[Picture], limit: int | None = None) -> list[np.ndarray]:
    return [picture.read() for picture in pictures[:limit]]
