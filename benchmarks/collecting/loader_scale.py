"""The loader on an index as large as the thesis' set, and larger: start-up, memory, order, resume.

    python -m benchmarks.collecting.loader_scale --out benchmarks/results/loader_scale.md

Writes the index of shards (data_pipeline/shards.py) with as much text as a collected record has,
but no pictures: every record gets the same small one from memory, so that what is measured is what
grows with the number of records. Each size is a process of its own. Of 10 million the order of an
epoch is measured, the rest is on paper: it is proportional to the number.
"""

import argparse
import datetime
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import processor
from data_pipeline.cli import command
from data_pipeline.examples.fields import FaceBox, Image, TimeIds
from data_pipeline.examples.source import ExampleSource
from data_pipeline.files import write_text
from data_pipeline.records.schema import Record, from_entry, to_entry
from data_pipeline.text_files import parse_json
from persongen_jax.tables import markdown

PICTURES_OF_ONE = 33  # the thesis: 125,000 of 3,800 people
SIZES = (12_500, 125_000)
PAPER = 10_000_000
PICTURE = np.zeros((64, 64, 3), np.uint8)
HEADS = ("records", "index", "read", "memory", "first example", "example of epoch 10", "epoch")


def record(n: int) -> Record:
    """A record as running/finish.py makes them."""
    key = f"{n:064x}"
    collected = {
        "url": f"https://example.org/pictures/{key[-20:]}.jpg",
        "sha256": key,
        "phash": key[-16:],
        "fetched": "2026-01-31T12:00:00Z",
        "licence": "CC BY 4.0",
        "consent": "",
        "verification": 0.8123,
        "captioner": "Qwen2.5-VL",
        "prompt": "0123456789ab",
    }
    points = tuple((100.25 + k, 200.5 + k) for k in range(5))
    return Record(
        f"images/{key[-2:]}/{key}.jpg",
        f"person {n // PICTURES_OF_ONE:07d}",
        "A smiling woman img in a red coat holds a cup on a beach; a boat is on the far right.",
        background="a beach, a boat on the far right",
        body="in a red coat, holds a cup",
        face_box=(100.5, 120.25, 400.5, 480.75),
        class_word="woman",
        landmarks=points,
        original_size=(1200, 900),
        crop=(10.0, 20.0, 810.0, 820.0),
        extra={"general": "a smiling woman", "collected": collected},
    )


def write_index(path: Path, count: int) -> None:
    """The lines of an index."""
    with path.open("w", encoding="utf-8") as file:
        for n in range(count):
            file.write(json.dumps(to_entry(record(n))) + "\n")


def measure(path: str, answer) -> None:
    """In a process of its own: the processor's seconds, which other work does not change."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    with open(path, encoding="utf-8") as file:
        records = [from_entry(parse_json(line, path)) for line in file]
    read = time.process_time() - begin
    fields = (Image(), TimeIds(), FaceBox())
    begin = time.process_time()
    source = ExampleSource(records, fields, seed=0, size=64, read_image=lambda name: PICTURE)
    source.example(0)
    first = time.process_time() - begin
    begin = time.process_time()
    source.example(10 * len(records) + 7)  # as a run that was stopped there
    resumed = time.process_time() - begin
    begin = time.process_time()
    np.random.default_rng(0).permutation(len(records))
    order = time.process_time() - begin
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    answer.send((read, held * 1024, first, resumed, order))


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--records", type=int, nargs="+", default=SIZES)
    parser.add_argument("--note", default="", help="a sentence about the machine")
    args = parser.parse_args(argv)
    rows, last = [], None
    for count in args.records:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index.jsonl"
            write_index(path, count)
            spawn = multiprocessing.get_context("spawn")
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=measure, args=(str(path), theirs))
            process.start()
            theirs.close()
            last = (count, path.stat().st_size, *ours.recv())
            process.join()
        rows.append(cells(last))
    assert last is not None
    scale = PAPER / last[0]
    begin = time.process_time()
    np.random.default_rng(0).permutation(PAPER)
    order = time.process_time() - begin
    paper = [PAPER, *(value * scale for value in last[1:5]), last[5], order]
    rows.append([f"{PAPER:,}, on paper but for *epoch*", *cells(paper)[1:5], "", f"{order:.1f} s"])
    each = last[3] / last[0]
    note = f" {args.note}" if args.note else ""
    text = f"""# The loader on large indices

`python -m benchmarks.collecting.loader_scale`, {datetime.date.today()}, {processor()}.{note} \
Records as the collection writes them, {PICTURES_OF_ONE} of each person, one small picture for \
all: what grows with their number. Seconds are the processor's. *read*: the index into records; \
*memory*: what the process has more in the end; *first example*: the checks at the start, the \
order of the first epoch, one example; *example of epoch 10*: what a run that is resumed there \
waits for; *epoch*: shuffling alone.

{markdown(HEADS, rows)}

What decides is memory: {each / 1e3:.1f} kB of every record stay in the process. The thesis' set \
needs {125_000 * each / 1e6:,.0f} MB, {PAPER:,} records {PAPER * each / 1e9:.0f} GB on every host, \
and the start {paper[2] / 60:.0f} minutes of one core. Shuffling and resuming cost nothing beside \
that.
"""

    print(text)
    if args.out:
        write_text(args.out, text)


def cells(found) -> list[str]:
    count, size, read, held, first, resumed, order = found
    return [
        *(f"{count:,}", f"{size / 1e6:,.0f} MB", f"{read:.1f} s", f"{held / 1e6:,.0f} MB"),
        *(f"{first:.2f} s", f"{resumed:.3f} s", f"{order:.3f} s"),
    ]


if __name__ == "__main__":
    main()
