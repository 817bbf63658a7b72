"""Which rule of verification finds strangers in a person's pictures, on AT&T's 40 people.

    python -m benchmarks.collecting.verification --out benchmarks/results/verification.md

Embeddings are SFace's. Thresholds are chosen on people s1 to s20 and everything is reported on s21
to s40 with them: strangers are drawn among these people, too. A group is 5, 8, 9 or 10 pictures of
a person and some of strangers, who are all different, or one and the same.
"""

import argparse
import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from benchmarks.collecting.photographs import write_work
from benchmarks.machine import processor
from data_pipeline.cli import command
from data_pipeline.collect.duplicates import near_pairs
from data_pipeline.collect.looking.measure import Measurer
from data_pipeline.collect.looking.phash import as_number
from data_pipeline.collect.settings import Duplicates, Measure, Verify
from data_pipeline.collect.verify import RULES, Verdict, median_direction
from data_pipeline.files import write_text
from persongen_jax.tables import markdown

HASH_HEADS = ("bits", "copies found", "wrong pairs by hash", "wrong pairs by hash and face")
GROUPS = ((9, 1), (8, 2), (10, 5), (5, 5))
BAR_ON = 3  # the first groups, on which thresholds are chosen and the bar is held
WRONG, RIGHT = 0.95, 0.01  # least share of strangers dropped, most of the person's own pictures
FIRST, SECOND = range(0, 20), range(20, 40)
COPIED = 4  # of so many pictures one is copied
GRID = {
    "median": np.arange(0.2, 0.81, 0.02),
    "median with itself": np.arange(0.2, 0.81, 0.02),
    "mean_cosine": np.arange(0.1, 0.71, 0.02),
    "mad": np.arange(2.0, 8.1, 0.5),
    "paper": np.arange(1.0, 8.1, 0.25),
}
IN_SPREADS = ("mad", "paper")  # whose thresholds count spreads below a centre
BITS = (2, 4, 6, 8, 10)


def median_with_itself(embeddings: np.ndarray, least: float) -> Verdict:
    """The cosine with the median of all pictures, the judged one among them."""
    scores = embeddings @ median_direction(embeddings)
    return Verdict(scores, least, scores >= least)


ALL: dict[str, Callable[[np.ndarray, float], Verdict]] = {
    **RULES,
    "median with itself": median_with_itself,
}


def measured(copies: bool = False, step: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """[n, d] of length 1, and the hashes [n] uint64; of every ``step``-th picture, or of copies
    that are reduced to 80 % and saved as JPEG of quality 60."""
    with tempfile.TemporaryDirectory() as work:
        files = [str(Path(work) / p.path) for p in write_work(Path(work))][::step]
        for file in files if copies else ():
            image = Image.open(file)
            small = image.resize((image.width * 4 // 5, image.height * 4 // 5))
            small.save(file, "JPEG", quality=60)
        looks = Measurer(Measure())([(file, file) for file in files])
    alone = [look.key for look, rows in looks if len(rows) != 1]
    if alone:
        raise ValueError(f"{len(alone)} pictures without exactly one face")
    rows = np.stack([rows[0] for _, rows in looks])
    return rows, np.array([as_number(look.phash) for look, _ in looks], np.uint64)


def groups(rows, people, own: int, strangers: int, count: int, seed: int, one: bool):
    """[count, own + strangers, d]: a person's own pictures first."""
    rng = np.random.default_rng((seed, own, strangers, one))
    found = []
    for n in range(count):
        person = people[n % len(people)]
        others = [p for p in people if p != person]
        mine = rows[person][rng.permutation(10)[:own]]
        if one:
            theirs = rows[rng.choice(others)][rng.permutation(10)[:strangers]]
        else:
            who = rng.choice(others, strangers, replace=False)
            theirs = rows[who, rng.integers(0, 10, strangers)]
        found.append(np.concatenate([mine, theirs]))
    return np.stack(found)


def margins(rule: str, made: np.ndarray) -> np.ndarray:
    """[groups, n]: what a threshold is held against; it is kept from there on."""
    found = []
    for group in made:
        zero = ALL[rule](group, 0.0)
        if rule not in IN_SPREADS:
            found.append(zero.scores)
            continue
        spread = zero.threshold - ALL[rule](group, 1.0).threshold
        found.append((zero.scores - zero.threshold) / spread)
    return np.stack(found)


def rates(rule: str, value: float, found: np.ndarray, own: int) -> tuple[float, float]:
    """(share of strangers dropped, share of the person's own) of ``margins``."""
    gone = found < (-value if rule in IN_SPREADS else value)
    return float(gone[:, own:].mean()), float(gone[:, :own].mean())


def choose(rule: str, made: list[tuple[int, np.ndarray]]) -> float:
    """The threshold with the largest margin on the first people: the worst of (strangers dropped)
    and of (own kept) over all groups is as good as it can be; of several the middle one."""
    measured_on = [(own, margins(rule, group)) for own, group in made]
    scores = []
    for value in GRID[rule]:
        found = [rates(rule, value, group, own) for own, group in measured_on]
        scores.append(min(min(wrong, 1 - right) for wrong, right in found))
    best = np.flatnonzero(np.array(scores) >= max(scores) - 1e-9)
    return round(float(GRID[rule][best[len(best) // 2]]), 4)


def merging(rows: np.ndarray) -> list[list[str]]:
    """Halves of a person, and two people, by the cosine of their medians: rows of a table."""
    out = []
    for name, people in (("s1 to s20", FIRST), ("s21 to s40", SECOND)):
        halves = np.array([[median_direction(rows[p][k : k + 5]) for k in (0, 5)] for p in people])
        flat = halves.reshape(-1, halves.shape[-1])
        cosine, who = flat @ flat.T, np.repeat(np.arange(len(people)), 2)
        same = cosine[(who[:, None] == who) & ~np.eye(len(flat), dtype=bool)]
        two = cosine[who[:, None] != who]
        least = Verify().merge
        wrong = int(np.sum(np.triu(cosine >= least) & (who[:, None] != who)))
        row = [name, f"{same.min():.3f}", f"{two.max():.3f}"]
        out.append([*row, f"{int((same >= least).sum() / 2)} of {len(people)}", str(wrong)])
    return out


def hashing(flat: np.ndarray, hashes: np.ndarray) -> list[list[str]]:
    """Copies that are found, and pairs of different pictures that look like copies."""
    settings = Duplicates()
    of_copies, hashes_of_copies = measured(copies=True, step=COPIED)
    cosine = np.sum(flat[::COPIED] * of_copies, axis=1)
    apart = np.bitwise_count(hashes[::COPIED] ^ hashes_of_copies)
    pairs = list(near_pairs(hashes, max(BITS)))
    out = []
    for bits in BITS:
        near = [(i, j) for i, j, n in pairs if n <= bits]
        alike = [(i, j) for i, j in near if flat[i] @ flat[j] >= settings.same_face]
        found = (apart <= bits) & (cosine >= settings.same_face)
        cells = [f"{found.sum()} of {len(found)}"]
        for chosen in (near, alike):
            same = sum(i // 10 == j // 10 for i, j in chosen)
            cells.append(f"{same} and {len(chosen) - same}")
        out.append([str(bits), *cells])
    return out


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--groups", type=int, default=200, help="of each kind (default: 200)")
    args = parser.parse_args(argv)
    flat, hashes = measured()
    rows = flat.reshape(40, 10, -1)
    chosen_on = [
        (own, groups(rows, FIRST, own, n, args.groups, 0, one))
        for own, n in GROUPS[:BAR_ON]
        for one in (False, True)
    ]
    thresholds = {rule: choose(rule, chosen_on) for rule in ALL}
    tables = []
    for one in (False, True):
        judged = [(own, groups(rows, SECOND, own, n, args.groups, 1, one)) for own, n in GROUPS]
        lines = []
        for rule, chosen in thresholds.items():
            found = [(own, margins(rule, made)) for own, made in judged]
            default = getattr(Verify(), rule) if rule in RULES else None
            for value, what in ((chosen, "chosen"), (default, "default")):
                if value is None or (what == "default" and value == chosen):
                    continue
                cells, holds = [], True
                for number, (own, values) in enumerate(found):
                    wrong, right = rates(rule, value, values, own)
                    cells.append(f"{wrong:.1%} / {right:.1%}")
                    holds &= number >= BAR_ON or (wrong >= WRONG and right <= RIGHT)
                said = "chosen and default" if chosen == default else what
                lines.append([rule, said, f"{value:g}", *cells, "yes" if holds else "no"])
        heads = ["rule", "threshold", "", *(f"{own}+{n}" for own, n in GROUPS), "bar met"]
        tables.append(markdown(heads, lines))
    machine = f"{datetime.date.today()}, {processor()}, onnxruntime {onnxruntime.__version__}"
    heads = ["people", "least of one person", "most of two", "merged", "merged wrongly"]
    text = f"""# Verification: strangers among a person's pictures

`python -m benchmarks.collecting.verification`, {machine}. AT&T's 400 photographs of 40 people on \
a black canvas, YuNet and SFace. Thresholds *chosen* on s1 to s20 (groups 9+1, 8+2 and 10+5, with \
strangers of both kinds), all figures of s21 to s40, {args.groups} groups of each kind: strangers \
dropped / own pictures dropped. *default* is what settings.py says. The bar, on the first three \
kinds of groups: at least {WRONG:.0%} / at most {RIGHT:.0%}. *median* compares with the median of \
the others, *median with itself* with that of all; it is not among the settings.

## All strangers are different people

{tables[0]}

## All strangers are one person

In 5+5 nobody can say who of the two is meant.

{tables[1]}

## Two names of one person

Cosine of the medians of two halves (5 + 5) of a person, and of two people; merged from \
{Verify().merge}.

{markdown(heads, merging(rows))}

## Pictures that look like copies

Copies are reduced to 80 % and saved as JPEG of quality 60; they count as found if the hashes \
differ in no more bits and the faces have a cosine of at least {Duplicates().same_face}. AT&T \
itself has no copies: of its 79,800 pairs all that look like one are wrong, *of one person and of \
two people*. Its pictures were taken one after another before the same wall.

{markdown(HASH_HEADS, hashing(flat, hashes))}
"""
    print(text)
    if args.out:
        write_text(args.out, text)


if __name__ == "__main__":
    main()
