"""Reads a folder of generated images in whichever layout it is, the first of these that fits:

index.json        what `evaluate --run … --pictures` writes, in the folder or in its pictures/
metadata.jsonl, prompts.json     see sidecars.py
PERSON/*.png      with the prompt and seed in the files: persongen_jax.generate's and ComfyUI's
PERSON/003_42.png the number of the prompt, and the seed
PERSON/*.png      images of people, from prompts that nothing says
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.pictures.listing import ENDINGS, list_images
from data_pipeline.records.names import look_alikes, plain_name
from data_pipeline.text_files import read_json
from persongen_jax.evaluation.folders import embedded
from persongen_jax.evaluation.folders.entries import Entry, Folder, LayoutError, of_text
from persongen_jax.evaluation.folders.sidecars import (
    METADATA,
    PROMPTS,
    STEM,
    listed,
    person_of,
    read_metadata,
    read_prompts,
)

INDEX, PICTURES = "index.json", "pictures"
INDEXED = {"person", "prompt", "seed", "picture", "reference"}  # keys of INDEX's entries
NEEDED = (
    "put each person's images into a subfolder with the person's name, or say whose each is in "
    f'{METADATA} ({{"file_name": …, "person": …, "prompt": …, "seed": …}}, a line for each image)'
)


def read_images(name: str, path: str | Path, alone: str = "") -> Folder:
    """What a folder holds; no image is decoded yet.

    Args:
        name: of the folder in tables.
        path: its own.
        alone: whose images are that lie in no subfolder: the only person of the references.

    Raises:
        LayoutError: no folder, no images, or a layout that does not say whose they are.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise LayoutError(f"{path}: no such folder")
    if not (folder / INDEX).is_file() and (folder / PICTURES / INDEX).is_file():
        folder = folder / PICTURES
    files = list_images(folder)
    if not files:
        raise LayoutError(f"{path}: no images in it ({', '.join(ENDINGS)})")
    if (folder / INDEX).is_file():
        found = _read_index(folder, files, name)
    elif (folder / METADATA).is_file():
        found = read_metadata(folder, files, name, alone)
    elif (folder / PROMPTS).is_file():
        found = read_prompts(folder, files, name, alone)
    else:
        found = _read_people(folder, files, name, alone)
    if not found.entries:
        why = next(iter(found.excluded.values()))
        raise LayoutError(f"{path}: none of its {len(files)} images can be used: {why}")
    found.notes += look_alikes(entry.person for entry in found.entries)
    return found


def _read_index(folder: Path, files: Sequence[str], name: str) -> Folder:
    """What an evaluation of a run wrote: the first image of every person and prompt."""
    path = folder / INDEX
    index: Any = read_json(path)
    found = Folder(name, folder, "pictures of an evaluated run", [])
    for number, row in enumerate(index if isinstance(index, list) else [None], 1):
        if not isinstance(row, dict) or not INDEXED <= row.keys():
            raise LayoutError(
                f"{path}: entry {number} lacks one of {', '.join(sorted(INDEXED))}; evaluate the "
                "run again with --pictures"
            )
        more = of_text(row["prompt"], seed=str(row["seed"]))
        person = plain_name(row["person"])
        if row["picture"] in files:
            found.entries.append(Entry(row["picture"], person, **more))
            found.references.setdefault(person, [str(folder / row["reference"])])
        else:
            found.excluded[row["picture"]] = f"{path} names it, and there is no such image"
    return found


def _read_people(folder: Path, files: Sequence[str], name: str, alone: str) -> Folder:
    """Images in people's folders, or of one person in none."""
    loose = [file for file in files if "/" not in file]
    found = Folder(name, folder, "a folder for each person", [])
    if loose and len(loose) < len(files):
        for file in loose:
            found.excluded[file] = "lies next to people's folders: move it into one"
        files = [file for file in files if "/" in file]
    elif loose and not alone:
        raise LayoutError(f"{folder}: whose are {listed(loose)}? {NEEDED}")
    notes = {file: embedded.notes_of(folder / file) for file in files}
    graphs = {file: embedded.graph_of(own) for file, own in notes.items()}
    if any(map(embedded.is_ours, notes.values())):
        found.layout = "persongen_jax.generate's files"
    elif any(graphs.values()):
        found.layout = "ComfyUI's files"
    mapping = embedded.read_mapping(folder)
    unknown = []
    for file in files:
        person = person_of(file, alone)
        if embedded.is_ours(notes[file]):
            text, seed, references = embedded.read_ours(notes[file])
            found.entries.append(Entry(file, person, **of_text(text, seed=seed)))
            known = [path for path in references if Path(path).is_file()]
            if known:
                found.references.setdefault(person, known)
        elif graphs[file]:
            text, seed = embedded.read_graph(graphs[file], mapping)
            found.entries.append(Entry(file, person, **of_text(text, seed=seed)))
        else:
            match = STEM.fullmatch(Path(file).stem)
            entry = Entry(file, person)
            if match and match["prompt"].isdigit():
                entry = Entry(file, person, f"prompt {int(match['prompt'])}", "", match["seed"])
            found.entries.append(entry)
        if not found.entries[-1].text:
            unknown.append(file)
    if unknown:
        found.notes.append(_without_text(unknown, len(files), any(graphs.values())))
    return found


def _without_text(unknown: list[str], total: int, comfy: bool) -> str:
    remedy = f"their texts in {PROMPTS} or {METADATA}"
    if comfy:
        remedy = f"where the graph has it in {embedded.MAPPING}"
    count = (
        "no image's prompt is known"
        if len(unknown) == total
        else (f"the prompts of {len(unknown)} of {total} images are not known ({listed(unknown)})")
    )
    return f"{count}: give {remedy}"
