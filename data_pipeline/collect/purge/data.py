"""People out of finished data: folders with a manifest, tars, shards, the report and the card."""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline.collect.output.card import card
from data_pipeline.collect.output.page import page
from data_pipeline.collect.output.tars import read_tar, write_tar
from data_pipeline.collect.output.write import CARD, PAGE, REPORT
from data_pipeline.collect.purge.wanted import PurgeError, Wanted, embeddings_of_files
from data_pipeline.collect.purge.work import is_copy_of, without_lines
from data_pipeline.collect.records import DROPPED
from data_pipeline.collect.settings import Measure
from data_pipeline.files import write_text
from data_pipeline.records.manifest import FILE_NAME, write_manifest
from data_pipeline.records.schema import from_entry
from data_pipeline.records.shard_reading import INDEX, SPLIT, import_tfds, is_shards
from data_pipeline.shards import write_shards
from data_pipeline.text_files import parse_json, parse_json_lines, read_json, read_text


def purge_data(folder: Path, who: Wanted, measure: Measure) -> Counter[str]:
    """Removes them from all data in a folder and below it; returns what was removed.

    Raises:
        PurgeError: there is no data.
    """
    counts: Counter[str] = Counter()
    manifests = sorted(folder.rglob(FILE_NAME))
    shards = [path.parent for path in sorted(folder.rglob(INDEX)) if is_shards(path.parent)]
    tars = sorted(folder.rglob("*.tar"))
    if not folder.is_dir() or not (manifests or shards or tars):
        raise PurgeError(f"{folder}: neither a {FILE_NAME}, shards nor tars in it")
    for path in manifests:
        _find_faces(_files(path), who, measure)  # in all of them before anything goes
    for path in manifests:
        counts += _purge_manifest(path, who)
    for path in tars:
        counts["pictures in tars"] += _purge_tar(path, who)
    for path in shards:
        counts["pictures in shards"] += _purge_shards(path, who, measure)
    for path in sorted(folder.rglob(REPORT)):
        _purge_report(path.parent, who, counts["pictures"])
    for path in sorted(folder.rglob(DROPPED)):
        counts[f"lines of {DROPPED}"] += without_lines(
            path,
            lambda e: (
                is_copy_of(e, who)
                or who.is_theirs(e.get("identity", ""), e.get("url", ""), e.get("key", ""))
            ),
        )
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


def collected(entry: dict[str, Any]) -> dict[str, Any]:
    """What the collection wrote of a picture's origin; {} for other data."""
    found = entry.get("collected") or (entry.get("extra") or {}).get("collected")
    return found if isinstance(found, dict) else {}


def _files(path: Path) -> dict[Path, dict[str, Any]]:
    """The pictures of a manifest, with an entry of each."""
    lines = parse_json_lines(read_text(path), path)
    return {path.parent / entry["image"]: entry for _, entry in lines}


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


def _find_faces(files: dict[Path, dict[str, Any]], who: Wanted, measure: Measure) -> None:
    """Looks at pictures of which no stored embedding said whose they are."""
    if not who.refused.faces:
        return
    new = {
        str(file): file
        for file, entry in files.items()
        if file.is_file() and collected(entry).get("sha256") not in who.looked
    }
    rows = embeddings_of_files(new, measure)
    whose = {name: files[file].get("identity", "") for name, file in new.items()}
    before = set(who.keys)
    who.find_faces(rows, whose, measure.recogniser)
    for name in who.keys - before:  # by the origin, which tars and shards know, too
        who.keys.add(collected(files[new[name]]).get("sha256") or name)


def _purge_tar(path: Path, who: Wanted) -> int:
    """Rewrites a tar without their pictures; one that is empty then goes."""
    groups = list(_groups(path))
    kept = [files for files in groups if not theirs(_entry_of(files, path), who)]
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


def _purge_shards(folder: Path, who: Wanted, measure: Measure) -> int:
    """Writes the shards again without their pictures, then puts them in the old ones' place."""
    lines = [entry for _, entry in parse_json_lines(read_text(folder / INDEX), folder / INDEX)]
    head, entries = lines[0], lines[1:]
    if not who.refused.faces and not any(theirs(entry, who) for entry in entries):
        return 0
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".purge") as place:
        of_file = {}
        for n, (entry, contents) in enumerate(zip(entries, _pictures(folder), strict=True)):
            file = Path(place) / f"{n:09d}{Path(entry['image']).suffix or '.png'}"
            file.write_bytes(contents)
            of_file[file] = entry
        _find_faces(of_file, who, measure)
        kept = [
            replace(from_entry(entry), image=str(file))
            for file, entry in of_file.items()
            if str(file) not in who.keys and not theirs(entry, who)
        ]
        if len(kept) == len(entries):
            return 0
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
    return len(entries) - len(kept)


def _pictures(folder: Path) -> Iterator[bytes]:
    """The files in shards as they were written, in order."""
    tfds = import_tfds()
    builder = tfds.builder_from_directory(str(folder))
    undecoded = {"image": tfds.decode.SkipDecoding()}
    for features in builder.as_data_source(SPLIT, decoders=undecoded):
        yield features["image"]


def _purge_report(folder: Path, who: Wanted, gone: int) -> None:
    """The page and the card again, without names of theirs and without contact sheets."""
    report = read_json(folder / REPORT)
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
