"""Scores folders of images that any tool generated, and compares them in pairs."""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from data_pipeline.files import write_text
from data_pipeline.records.groups import Group, join_groups
from persongen_jax.evaluation.folders.entries import Folder
from persongen_jax.evaluation.folders.layouts import read_images
from persongen_jax.evaluation.folders.pairing import (
    check_common,
    differences,
    give_keys,
    unequal_sets,
)
from persongen_jax.evaluation.folders.people import (
    Real,
    decodable,
    known_people,
    lacking,
    of_file,
    read_people,
)
from persongen_jax.evaluation.folders.pictures import Pictures
from persongen_jax.evaluation.folders.scoring import (
    USUAL,
    Scores,
    images_by_person,
    judge_keys,
    open_pictures,
    open_scorers,
    score,
)
from persongen_jax.evaluation.folders.sidecars import listed
from persongen_jax.evaluation.reports.page import page
from persongen_jax.evaluation.reports.results import as_json
from persongen_jax.evaluation.reports.tables import write_tables
from persongen_jax.metrics.base import Known
from persongen_jax.systems.sdxl_config import sdxl_defaults


def score_folders(args: argparse.Namespace) -> list[Scores]:
    """Read, measure, compare and write; return the measured folders.

    Args:
        args: the command's: images, references, real, gallery, metrics, encoder, recogniser,
            fid_variant, json, cache, out.

    Raises:
        ValueError, OSError: a sentence on what cannot be used, and what to do.
    """
    config = make_config(args)
    notes: list[str] = []
    sources = [args.references, args.real, args.gallery]
    (references, first), (real, second), (gallery, _) = (_people(each, notes) for each in sources)
    folders, pictures = open_together(args.images, references, notes)
    if not references:
        references = references_of(folders, notes)
    (references, real), unreadable, copies = decodable(references, real)
    (gallery,), more, _ = decodable(gallery)
    notes += [f"left out, a real picture: {why}" for why in (unreadable | more).values()]
    notes += [f"{copies} real pictures are there twice, and count once"] if copies else []
    known = [_known(folder, references, real, gallery, [first, second]) for folder in folders]
    cache = args.cache or Path.home() / ".cache" / "persongen_jax" / "features"
    metrics, missing = open_scorers(config, args.recogniser, cache)
    notes += missing
    scores = [
        score(folder, own, about, metrics)
        for folder, own, about in zip(folders, pictures, known, strict=True)
    ]
    notes += unequal_sets(scores)
    if not any(each.measures for each in scores):
        raise ValueError(f"nothing was measured: {'; '.join([*notes, *folders[0].notes])}")
    write_report(scores, known, notes, args.out or Path("evaluation"), args.json)
    return scores


def make_config(args: argparse.Namespace) -> ConfigDict:
    """The config that metrics are opened with, from the command's options.

    Raises:
        ValueError: an encoder that no metric reads, one that is given twice, or both an encoder and
            recognisers of faces.
    """
    config = sdxl_defaults()
    known, given = [*judge_keys(config)], set()
    for item in args.encoder:
        name, equals, file = item.partition("=")
        if not equals or name not in known or not file:
            raise ValueError(f"--encoder {item}: give NAME=FILE; names are {', '.join(known)}")
        if name in given:
            raise ValueError(f"--encoder {name}: given twice; give it once")
        given.add(name)
        config[name] = file
    if args.recogniser and "face_net" in given:
        raise ValueError("--encoder face_net: it is a --recogniser too; give it in one place")
    twice = [file for i, file in enumerate(args.recogniser) if file in args.recogniser[:i]]
    if twice:
        raise ValueError(f"--recogniser {twice[0]}: given twice; give it once")
    if args.fid_variant:
        config.fid_variant = args.fid_variant
    config.metrics = tuple(args.metrics or USUAL)
    return config


def open_together(
    items: Sequence[str], references: Real, notes: list[str]
) -> tuple[list[Folder], list[Pictures]]:
    """Folders that can be compared in pairs, and their images; ``notes`` gets what is about all.

    Raises:
        ValueError: a folder that cannot be read, or two without a common image.
    """
    folders = open_folders(items, references)
    pictures = [open_pictures(folder) for folder in folders]
    notes += give_keys(folders)
    for folder in folders:
        folder.drop_excluded()
    for first, second in itertools.combinations(folders, 2):
        check_common(first, second)
    return folders, pictures


def open_folders(items: Sequence[str], references: Real) -> list[Folder]:
    """The folders of --images or --rate, DIR or NAME=DIR each.

    Raises:
        ValueError: two of one name, or a folder that cannot be read.
    """
    alone = next(iter(references)) if len(references) == 1 else ""
    folders = []
    for item in items:
        name, equals, place = item.partition("=")
        if not equals or Path(item).is_dir():  # a path may contain one
            place = item
            name = Path(item).resolve().name
        folders.append(read_images(name, place, alone))
    names = [folder.name for folder in folders]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ValueError(f"two folders are called {twice[0]}: give NAME=DIR each")
    return folders


def write_report(
    scores: Sequence[Scores],
    known: Sequence[Known],
    notes: Sequence[str],
    out: Path,
    json_file: Path | None = None,
) -> None:
    """Write scores.json (or ``json_file``), the tables and scores.html; print the tables."""
    out.mkdir(parents=True, exist_ok=True)
    compared = [row for pair in itertools.combinations(scores, 2) for row in differences(*pair)]
    json_file = json_file or out / "scores.json"
    json_file.parent.mkdir(parents=True, exist_ok=True)
    found = as_json(scores, compared, notes)
    write_text(json_file, json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    print(write_tables(scores, compared, notes, out))
    write_text(out / "scores.html", page(scores, known, compared, notes))
    print(f"written: {out}, {json_file}")


def _people(source: str | None, notes: list[str]) -> tuple[Real, dict[str, Group]]:
    """The people of an option's source and their groups; {} if it is not given."""
    if not source:
        return {}, {}
    found, said, groups = read_people(source)
    notes += said
    return found, groups


def references_of(folders: Sequence[Folder], notes: list[str]) -> Real:
    """The references that the folders themselves name; the first folder counts."""
    found: Real = {}
    for folder in folders:
        for person, paths in folder.references.items():
            found.setdefault(person, [of_file(path) for path in paths])
    if found:
        notes.append(f"references are those that the images name, of {len(found)} people")
    return found


def _known(
    folder: Folder,
    references: Real,
    real: Real,
    gallery: Real,
    groups: Sequence[dict[str, Group]],
) -> Known:
    """What is known about a folder's people, with notes on what is not.

    Raises:
        ValueError: none of the people whose pictures are given has an image, or somebody is in two
            groups.
    """
    people = images_by_person(folder.entries)
    for option, source in (("references", references), ("real", real)):
        if source and not any(who in people for who in source):
            raise ValueError(
                f"--{option}: none of its people ({listed(list(source))}) has an image in "
                f"{folder.name}, whose people are {listed(list(people))}: give people the same "
                "names in both"
            )
    folder.notes += lacking(people, references, "reference")
    folder.notes += lacking(people, real, "real picture") if real else []
    said = {who: [each.get(who) for each in groups] for who in people}
    for entry in folder.entries:
        if entry.group:
            said[entry.person].append(entry.group)
    joint = {who: join_groups(own, who) for who, own in said.items()}
    return known_people(folder.name, people, references, real, gallery, joint)
