"""People out of finished data: folders with a manifest, tars, shards, the report and the card."""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline.collect.forgetting import without_lines
from data_pipeline.collect.output.card import card
from data_pipeline.collect.output.contents import collected, contents_of
from data_pipeline.collect.output.page import page
from data_pipeline.collect.output.tars import read_tar, write_tar
from data_pipeline.collect.output.write import CARD, PAGE, REPORT
from data_pipeline.collect.purge.facts import Facts, is_theirs
from data_pipeline.collect.purge.wanted import PurgeError, Wanted, embeddings_of_files
from data_pipeline.collect.records import DROPPED
from data_pipeline.collect.settings import Measure
from data_pipeline.collect.split import SETS
from data_pipeline.files import write_text
from data_pipeline.pictures.listing import is_image_name
from data_pipeline.records.manifest import FILE_NAME, write_manifest
from data_pipeline.records.schema import from_entry
from data_pipeline.records.shard_reading import INDEX, SPLIT, import_tfds, is_shards
from data_pipeline.shards import write_shards
from data_pipeline.text_files import parse_json, parse_json_lines, read_json, read_text


def find_in_data(folder: Path, who: Wanted, measure: Measure, facts: Facts) -> None:
    """Adds what a folder's data say to ``facts``, and to ``who`` what their faces say.

    Raises:
        PurgeError: there is no data.
    """
    manifests, shards, tars = _data(folder)
    if not (manifests or shards or tars):
        raise PurgeError(f"{folder}: neither a {FILE_NAME}, shards nor tars in it")
    for path in sorted(folder.rglob(REPORT)):
        facts.merged += [(pair[0], pair[1]) for pair in read_json(path)["merged"]]
    for path in sorted(folder.rglob(DROPPED)):
        facts.add_dropped(path)
    for path in manifests:
        files = _files(path)
        facts.add_entries(files.values())
        _find_faces({str(file): (file, entry) for file, entry in files.items()}, who, measure)
    for path in shards:
        facts.add_entries(_index(path)[1])
    for path in tars:
        facts.add_entries(_entry_of(files, path) for files in _groups(path))
    if who.refused.faces:  # what is packed has to be written before it can be looked at
        for path in [*shards, *tars]:
            with tempfile.TemporaryDirectory(prefix=".purge", dir=path.parent) as place:
                packed = _unpacked(path, Path(place))
                named = {f"{path}#{n}": found for n, found in packed.items()}
                _find_faces(named, who, measure)


def purge_data(folder: Path, who: Wanted) -> Counter[str]:
    """Removes them from all data in a folder and below it; returns what was removed."""
    counts: Counter[str] = Counter()
    manifests, shards, tars = _data(folder)
    for path in manifests:
        counts += _purge_manifest(path, who)
    for path in tars:
        counts["pictures in tars"] += _purge_tar(path, who)
    for path in shards:
        counts["pictures in shards"] += _purge_shards(path, who)
    for path in sorted(folder.rglob(REPORT)):
        _purge_report(path.parent, who, counts["pictures"])
    for path in sorted(folder.rglob(DROPPED)):
        counts[f"lines of {DROPPED}"] += without_lines(path, lambda e: is_theirs(e, who))
    return counts


def theirs(entry: dict[str, Any], who: Wanted) -> bool:
    """Whether an entry of a manifest, of an index or of a tar goes."""
    known = collected(entry)
    return who.is_theirs(
        entry.get("identity", ""),
        known.get("url", ""),
        known.get("sha256", ""),
        known.get("also_called", ""),
    )


def _data(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Manifests, folders of shards, and tars."""
    shards = [path.parent for path in sorted(folder.rglob(INDEX)) if is_shards(path.parent)]
    return sorted(folder.rglob(FILE_NAME)), shards, sorted(folder.rglob("*.tar"))


def _files(path: Path) -> dict[Path, dict[str, Any]]:
    """The pictures of a manifest, with an entry of each."""
    lines = parse_json_lines(read_text(path), path)
    return {path.parent / entry["image"]: entry for _, entry in lines}


def _index(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The head of shards' index, and its entries."""
    lines = [entry for _, entry in parse_json_lines(read_text(folder / INDEX), folder / INDEX)]
    return lines[0], lines[1:]


def _unpacked(path: Path, place: Path) -> dict[int, tuple[Path, dict[str, Any]]]:
    """The pictures of shards or of a tar as files in ``place``, by their numbers."""
    found: dict[int, tuple[Path, dict[str, Any]]] = {}
    pictures: Iterable[tuple[dict[str, Any], bytes]]
    if path.is_dir():
        pictures = zip(_index(path)[1], _pictures(path), strict=True)
    else:
        pictures = ((_entry_of(files, path), _picture_of(files)) for files in _groups(path))
    for n, (entry, contents) in enumerate(pictures):
        file = place / f"{n:09d}{Path(entry.get('image', '')).suffix or '.png'}"
        file.write_bytes(contents)
        found[n] = file, entry
    return found


def _purge_manifest(path: Path, who: Wanted) -> Counter[str]:
    gone = {
        entry["image"]: entry
        for file, entry in _files(path).items()
        if str(file) in who.keys or theirs(entry, who)
    }
    counts: Counter[str] = Counter()
    for image, entry in gone.items():
        for name in (image, *(entry.get("images") or {}).values()):
            file = path.parent / name
            if file.is_file():
                file.unlink()
                counts["pictures"] += name == image
    counts[f"lines of {FILE_NAME}"] = without_lines(path, lambda entry: entry["image"] in gone)
    return counts


def _find_faces(
    pictures: Mapping[str, tuple[Path, dict[str, Any]]], who: Wanted, measure: Measure
) -> None:
    """Looks at pictures of which no stored embedding said whose they are."""
    if not who.refused.faces:
        return
    entries = {name: entry for name, (_, entry) in pictures.items()}
    hashes = {name: collected(entry).get("sha256") for name, entry in entries.items()}
    new = {
        name: file
        for name, (file, _) in pictures.items()
        if file.is_file() and hashes[name] not in who.looked
    }
    rows = embeddings_of_files(new, measure)
    whose = {name: entries[name].get("identity", "") for name in new}
    before = set(who.keys)
    who.find_faces(rows, whose, measure.recogniser)
    who.looked |= {key for name in new if (key := hashes[name])}
    for name in who.keys - before:  # by the hash, which the other forms know, too
        who.keys.add(hashes[name] or name)


def _purge_tar(path: Path, who: Wanted) -> int:
    """Rewrites a tar without their pictures; one that is empty then goes."""
    groups = list(_groups(path))
    kept = [
        files
        for n, files in enumerate(groups)
        if f"{path}#{n}" not in who.keys and not theirs(_entry_of(files, path), who)
    ]
    if len(kept) == len(groups):
        return 0
    if kept:
        write_tar(path, (file for files in kept for file in files))
    else:
        path.unlink()
    return len(groups) - len(kept)


def _groups(path: Path) -> Iterator[list[tuple[str, bytes]]]:
    """The files of a tar by their key, the name through its first dot."""
    files: list[tuple[str, bytes]] = []
    key = None
    for name, contents in read_tar(path):
        folder, base = os.path.split(name)
        this = (folder, base.split(".", 1)[0])
        if files and this != key:
            yield files
            files = []
        key = this
        files.append((name, contents))
    if files:
        yield files


def _entry_of(files: list[tuple[str, bytes]], path: Path) -> dict[str, Any]:
    texts = [contents for name, contents in files if name.endswith(".json")]
    return parse_json(texts[0].decode(), path) if texts else {}


def _picture_of(files: list[tuple[str, bytes]]) -> bytes:
    """Of the files of a key the picture, which has no further ending as masks have."""
    for name, contents in files:
        ending = os.path.basename(name).partition(".")[2]
        if "." not in ending and is_image_name(f"x.{ending}"):
            return contents
    return b""


def _purge_shards(folder: Path, who: Wanted) -> int:
    """Writes the shards again without their pictures, then puts them in the old ones' place."""
    head, entries = _index(folder)
    gone = {
        n for n, entry in enumerate(entries) if f"{folder}#{n}" in who.keys or theirs(entry, who)
    }
    if not gone:
        return 0
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".purge") as place:
        kept = [
            replace(from_entry(entry), image=str(file))
            for n, (file, entry) in _unpacked(folder, Path(place)).items()
            if n not in gone
        ]
        old = folder.with_name(folder.name + ".old")
        if kept:
            write_manifest(place, kept)
            new = Path(place) / "shards"
            write_shards(place, new, trigger_word=head["trigger_word"])
            folder.replace(old)
            new.replace(folder)
            shutil.rmtree(old)
        else:
            shutil.rmtree(folder)
    return len(gone)


def _pictures(folder: Path) -> Iterator[bytes]:
    """The files in shards as they were written, in order."""
    tfds = import_tfds()
    builder = tfds.builder_from_directory(str(folder))
    undecoded = {"image": tfds.decode.SkipDecoding()}
    for features in builder.as_data_source(SPLIT, decoders=undecoded):
        yield features["image"]


def _purge_report(folder: Path, who: Wanted, gone: int) -> None:
    """The report, the page and the card again: counts of what is left, without names of theirs and
    without contact sheets."""
    report = read_json(folder / REPORT)
    manifests = {name: folder / name / FILE_NAME for name in SETS}
    left = {name: list(_files(path).values()) for name, path in manifests.items() if path.is_file()}
    if left:
        report |= contents_of(left)
    report["merged"] = [
        pair for pair in report["merged"] if not any(who.is_name(name) for name in pair[:2])
    ]
    nearest = report["nearest_across_sets"]
    if nearest and any(who.is_name(name) for name in nearest[:2]):
        report["nearest_across_sets"] = []
    report["purged"] = report.get("purged", 0) + gone
    write_text(folder / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / PAGE, page(report, {}))
    write_text(folder / CARD, card(report))
