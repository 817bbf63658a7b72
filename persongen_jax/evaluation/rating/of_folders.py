"""Blind rating by people: writes the page of two folders' images, or reads its answers."""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.files import write_text
from data_pipeline.text_files import read_json
from persongen_jax.evaluation.folders.people import decodable, read_people
from persongen_jax.evaluation.folders.sidecars import listed
from persongen_jax.evaluation.of_folders import open_together, references_of
from persongen_jax.evaluation.rating.answers import (
    QUESTIONS,
    Preference,
    preferences,
    read_answers,
)
from persongen_jax.evaluation.rating.page import rating_page
from persongen_jax.evaluation.rating.pairs import RatedPair, draw_pairs
from persongen_jax.tables import markdown
from persongen_jax.weights.saver import write_json

PAIRS = 100
PAGE, KEY, FOUND = "rating.html", "rating_key.json", "rating"


def rate_folders(args: argparse.Namespace) -> list[Preference]:
    """Write the page and its key; with ``args.answers`` read them, print and write the table.

    Args:
        args: the command's: rate (two folders), references, pairs, seed, answers, out.

    Returns:
        What raters prefer; [] if the page was written.

    Raises:
        ValueError: folders without common images, no key, or answers of another page.
    """
    out = args.out or Path("rating")
    if args.answers:
        return read_ratings(args.answers, out)
    count = PAIRS if args.pairs is None else args.pairs
    write_page(args.rate, args.references, count, args.seed or 0, out)
    return []


def write_page(
    items: Sequence[str], references: str | None, count: int, seed: int, out: Path
) -> None:
    """Write PAGE, and KEY, which says what the page hides."""
    if count < 1:
        raise ValueError(f"--pairs {count}: at least 1")
    if (out / KEY).exists():
        raise ValueError(f"{out / KEY}: the answers to a page need it; give another --out")
    real, notes, _ = read_people(references) if references else ({}, [], {})
    (first, second), _ = open_together(items, real, notes)
    real = real or references_of([first, second], notes)
    (real,), unreadable, _ = decodable(real)
    notes += [f"left out, a reference: {why}" for why in unreadable.values()]
    for folder in (first, second):
        notes += folder.notes
        notes += [f"left out: {folder.name}/{file}: {why}" for file, why in folder.excluded.items()]
    for note in notes:
        print(note)
    pairs = draw_pairs(first, second, count, seed)
    people = sorted({pair.entry.person for pair in pairs})
    shown = {who: real[who][0].read() for who in people if real.get(who)}
    if not shown and not any(pair.entry.text for pair in pairs):
        raise ValueError("--rate: neither references nor prompts are known: give --references DIR")
    if len(shown) < len(people):
        without = listed([who for who in people if who not in shown])
        print(f"no reference of {without}: not asked who is {QUESTIONS['likeness']}")
    key = make_key(pairs, first.name, second.name, seed)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / PAGE, rating_page(key["page"], pairs, shown))
    write_json(out / KEY, key)
    print(
        f"{len(pairs)} pairs of {len(people)} people: give raters {out / PAGE}, keep {out / KEY}, "
        f"and read what they save with --rate … --answers FILE … --out {out}"
    )


def make_key(pairs: Sequence[RatedPair], first: str, second: str, seed: int) -> dict:
    """What KEY holds: {"page", "first", "second", "seed", "pairs": {name: …}}."""
    rows = {
        pair.name: {
            "person": pair.entry.person,
            "prompt": pair.entry.prompt,
            "seed": pair.entry.seed,
            "first_is_left": pair.first_is_left,
        }
        for pair in pairs
    }
    page = hashlib.sha256(json.dumps([first, second, seed, rows]).encode()).hexdigest()[:12]
    return {"page": page, "first": first, "second": second, "seed": seed, "pairs": rows}


def read_ratings(files: Sequence[Path], out: Path) -> list[Preference]:
    """Print what the answers say; write it as FOUND.json and FOUND.md."""
    if not (out / KEY).is_file():
        raise ValueError(f"{out / KEY}: no such file; --out is the folder of the page")
    key = read_json(out / KEY)
    answers = read_answers(files, key, str(out / KEY))
    found = preferences(answers, key)
    if not found:
        raise ValueError(f"{listed([str(file) for file in files])}: no question is answered")
    text = describe(found, key)
    print(text)
    write_text(out / f"{FOUND}.md", text + "\n")
    rows = {
        each.question: {
            **each.interval.as_measure(),
            "first": each.first,
            "second": each.second,
            "same": each.same,
            "raters": each.raters,
            "agreement": each.agreement,
        }
        for each in found
    }
    write_json(out / f"{FOUND}.json", {"folders": [key["first"], key["second"]], **rows})
    return found


def describe(found: Sequence[Preference], key: dict) -> str:
    """A table: how often the first folder is preferred."""
    first, second = key["first"], key["second"]
    head = ["question", f"{first} preferred", "95 % interval", first, second, "no difference"]
    rows = []
    for each in found:
        interval = each.interval
        limits = interval.reason
        if interval.low is not None and interval.high is not None:
            limits = f"{interval.low:.1%} to {interval.high:.1%}"
        counts = [str(number) for number in (each.first, each.second, each.same)]
        rows.append([QUESTIONS[each.question], f"{interval.mean:.1%}", limits, *counts])
    raters = max(each.raters for each in found)
    lines = [f"{raters} rater{'s' if raters > 1 else ''}; {len(key['pairs'])} pairs."]
    agreed = [each for each in found if each.agreement is not None]
    lines += [
        f"Two raters agree about {QUESTIONS[each.question]} in {each.agreement:.0%}."
        for each in agreed
    ]
    about = "other people and raters" if raters > 1 else "other people, not about other raters"
    lines.append(f"No difference counts as half. Intervals are about {about}.")
    return f"{markdown(head, rows)}\n\n{' '.join(lines)}"
