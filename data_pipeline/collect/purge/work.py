"""People out of a work folder: pictures, measurements, embeddings, captions, lists."""

import json
from collections import Counter
from pathlib import Path

from data_pipeline.collect.forgetting import forget, stores, without_lines
from data_pipeline.collect.looking.store import EMBEDDINGS, HOW, decoded, lines_of
from data_pipeline.collect.purge.facts import Facts, is_theirs
from data_pipeline.collect.purge.wanted import Wanted
from data_pipeline.collect.records import DROPPED, MERGED, PICTURES, read_pictures
from data_pipeline.collect.running.held import remove_held
from data_pipeline.files import write_text
from data_pipeline.text_files import read_json


def find_in_work(work: Path, who: Wanted, facts: Facts) -> None:
    """Adds what the folder knows to ``facts``, and to ``who`` what the stored faces say."""
    pictures = read_pictures(work) if (work / PICTURES).is_file() else []
    facts.pictures += [(p.key, p.identity, p.url, "") for p in pictures]
    facts.add_dropped(work / DROPPED)
    if (work / MERGED).is_file():
        facts.merged += [(pair[0], pair[1]) for pair in read_json(work / MERGED)]
    whose = {picture.key: picture.identity for picture in pictures}
    if who.refused.faces:
        for folder in stores(work):
            recogniser = read_json(folder / HOW)["recogniser"]
            rows = {entry["key"]: decoded(entry) for entry in lines_of(folder, EMBEDDINGS)}
            who.find_faces(rows, whose, recogniser)


def purge_work(work: Path, who: Wanted) -> Counter[str]:
    """Removes them from every file of the folder; returns what was removed."""
    counts: Counter[str] = Counter()
    pictures = read_pictures(work) if (work / PICTURES).is_file() else []
    for picture in pictures:
        path = work / picture.path
        if picture.key in who.keys and path.is_file():
            path.unlink()
            counts["pictures"] += 1
    for name in (PICTURES, DROPPED):
        counts[f"lines of {name}"] += without_lines(work / name, lambda e: is_theirs(e, who))
    counts += forget(work, who.keys)
    if (work / MERGED).is_file():
        pairs = read_json(work / MERGED)
        left = [pair for pair in pairs if not any(who.is_name(name) for name in pair[:2])]
        write_text(work / MERGED, json.dumps(left, ensure_ascii=False) + "\n")
    remove_held(work, who.is_name, who.keys)
    return counts
