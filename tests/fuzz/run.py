"""Passes damaged files to their readers one by one, and measures time and memory."""

import contextlib
import io
import os
import resource
import shutil
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.cli import KNOWN
from tests.fuzz.targets import Target

SECONDS = 10


@dataclass
class Fault:
    """Attributes: seed: of the damage; what: went wrong, in one line; trace: of an exception."""

    target: str
    seed: int
    what: str
    trace: str = ""


def damaged(target: Target, name: str, seed: int) -> tuple[bytes, str]:
    """The file's bytes after the damage of ``seed``, and what was done."""
    rng = np.random.default_rng((seed, len(name), *name.encode()))
    way = target.ways[rng.integers(len(target.ways))]
    return way(target.file.read_bytes(), rng), way.__name__


def place(target: Target, folder: Path) -> Path:
    """The path for the damaged file in the empty ``folder``, with its neighbours next to it."""
    root = getattr(target.read, "root", None)
    if root is None:
        if target.file.name in ("manifest.jsonl", "labels.csv"):
            shutil.copytree(target.file.parent, folder / "data")
            return folder / "data" / target.file.name
        return folder / target.file.name
    shutil.copytree(root, folder / "base", copy_function=os.link)
    path = folder / "base" / target.file.relative_to(root)
    path.unlink()
    return path


def try_one(target: Target, name: str, seed: int, folder: Path) -> tuple[str, Fault | None]:
    """("read" or "refused", what went wrong or None)."""
    data, way = damaged(target, name, seed)
    path = place(target, folder)
    path.write_bytes(data)
    before, start = _peak(), time.perf_counter()
    outcome, fault = "read", None
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(path)
    except KNOWN as error:
        outcome, said = "refused", str(error)
        parts = {each.name for each in (path, *path.parents) if folder in each.parents}
        if not any(part in said for part in parts):
            fault = Fault(name, seed, f"{way}: names no file: {_line(error)}", _trace())
    except Exception as error:
        outcome, fault = "failed", Fault(name, seed, f"{way}: {_line(error)}", _trace())
    seconds, grown = time.perf_counter() - start, _peak() - before
    if fault is None and seconds > SECONDS:
        fault = Fault(name, seed, f"{way}: took {seconds:.0f} s")
    if fault is None and grown > 2 * len(data) + target.room:
        fault = Fault(name, seed, f"{way}: took {grown >> 20} MB for {len(data) >> 10} KB")
    return outcome, fault


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _line(error) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _trace() -> str:
    return traceback.format_exc()


def try_all(targets: dict[str, Target], count: int, folder: Path, first: int = 0):
    """Outcomes by target, a Counter each, and the faults; ``count`` damaged files in total."""
    names, outcomes, faults = list(targets), {}, []
    for i in range(first, first + count):
        name = names[i % len(names)]
        here = folder / f"case{i}"
        here.mkdir()
        outcome, fault = try_one(targets[name], name, i, here)
        outcomes.setdefault(name, Counter())[outcome] += 1
        if fault:
            faults.append(fault)
        shutil.rmtree(here, ignore_errors=True)
    return outcomes, faults
