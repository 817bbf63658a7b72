"""Compile the real training step or sampler for TPUs that are not present.

    python -m persongen_jax.aot --config configs/photomaker_bg.py --topology v5e:4x4
    python -m persongen_jax.aot --config configs/photomaker_bg.py --topology v5p:4x4x4 --search
    python -m persongen_jax.aot --config configs/base.py --topology v6e:4x4 --what sample

Prints, and with --json writes, bytes per chip against its memory, FLOPs, the compiler's two
estimates of the time and what follows from them, collectives, and what the estimates miss. It needs
the extra "tpu-aot" but no TPU; it loads nothing and creates no array. ``config.base`` may be a
directory, whose configs are then used; if it is empty the networks have SDXL's sizes. Any key of
the config can be overridden with --config.KEY=VALUE.
"""

import argparse
import importlib.metadata
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

# The devices are the topology's; a backend of this machine would only be in the way.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from data_pipeline import text_files  # noqa: E402
from data_pipeline.files import write_text  # noqa: E402
from persongen_jax.aot.chips import GIB, open_topology  # noqa: E402
from persongen_jax.aot.compiling import (
    TO_FIT,
    DoesNotFit,
    check_options,
    measure,
    report,
)  # noqa: E402
from persongen_jax.aot.programs import encoders, sampler, training, with_batch  # noqa: E402
from persongen_jax.aot.search import largest  # noqa: E402
from persongen_jax.cli import command, parse_with_config  # noqa: E402
from persongen_jax.parallel.sharding import make_mesh  # noqa: E402

DEFAULT_BATCH = 4
KINDS = ("train", "sample", "encode")


def compile_for_topology(
    config: ConfigDict,
    topology: str,
    per_chip: int,
    *,
    what: str = "train",
    cached: bool = False,
    options: dict | None = None,
    text: Path | None = None,
) -> dict:
    """Compile a program and return its figures as a dict for JSON (compiling.measure).

    Args:
        config: an experiment's config; its ``batch_size`` is ignored.
        topology: such as "v5e:4x4".
        per_chip: images per chip in one step, or sampled at once.
        what: "train", "sample", or "encode": the frozen encoders of a training step, alone.
        cached: a training step that reads cached features instead of running frozen encoders.
        options: of the TPU's compiler, by name.
        text: a file to write the compiled program to.

    Raises:
        DoesNotFit: a chip has too little memory.
        ValueError, ImportError: invalid arguments; the message has the remedy.
    """
    if what not in KINDS:
        raise ValueError(f"--what {what}: use one of {', '.join(KINDS)}")
    check_batch(per_chip)
    chip, devices = open_topology(topology)
    mesh = make_mesh(devices, fsdp=config.fsdp)
    check_options(mesh, options or {})
    config = with_batch(config, per_chip, mesh.size)
    if what == "train":
        program = training(config, mesh, cached=cached)
    elif what == "encode":
        program = encoders(config, mesh)
    else:
        program = sampler(config, mesh, steps=config.validation_steps)
    row, _ = measure(program, chip, options or {}, text=text)
    of = {"topology": topology, "what": what, "method": program.label, "cached": cached}
    return {**of, "fsdp": config.fsdp, **row}


def check_batch(per_chip: int) -> None:
    if per_chip < 1:
        raise ValueError(f"--per_chip_batch {per_chip}: give at least 1")


def search(
    config: ConfigDict,
    topology: str,
    start: int,
    *,
    before: Sequence[dict] = (),
    tell: Callable[[str], object] = print,
    keep: Callable[[dict], object] = lambda row: None,
    **kw: Any,
) -> dict:
    """The same for the largest batch that fits, with all ``tries``: batch -> bytes needed.

    Every try takes minutes, so ``keep`` is called with the best row so far after each of them.

    Args:
        start: the first try.
        before: rows of the same program; what they have tried is not compiled again.

    Raises:
        DoesNotFit: not even one image per chip fits.
        ValueError, ImportError: as in compile_for_topology.
    """
    check_batch(start)
    chip, _ = open_topology(topology)
    rows = {row["per_chip_batch"]: row for row in before}
    tries = {int(n): size for row in before for n, size in row.get("tries", {}).items()}
    tries |= {n: row["bytes"]["total"] for n, row in rows.items()}

    def compile_try(n):
        try:
            rows[n] = compile_for_topology(config, topology, n, **kw)
            tries[n] = rows[n]["bytes"]["total"]
        except DoesNotFit as error:
            tries[n] = error.needed
        if rows:
            keep({**rows[max(rows)], "tries": dict(tries)})

    def needs(n):
        known = n in tries
        if not known:
            compile_try(n)
        fits = n <= max(rows, default=0)
        size = "?" if tries[n] is None else f"{tries[n] / GIB:.2f} GiB"
        said = f"{n} images per chip: {size}, {'fits' if fits else 'does not fit'}"
        tell(said + (", from an earlier run" if known else ""))
        # A program that compiles fits: the compiler knows best how much room there is. One that
        # does not compile may have been reported to need less than there is.
        if fits:
            return chip.memory if tries[n] is None else min(tries[n], chip.memory)
        return tries[n] if tries[n] is not None and tries[n] > chip.memory else math.inf

    best = largest(needs, chip.memory, [*sorted(tries), start])
    if not best:
        said = f"not even one image per chip fits on {topology}; {TO_FIT}"
        raise DoesNotFit(said, tries[min(tries)])
    return {**rows[best], "tries": tries}


# ---- The command -------------------------------------------------------------------------------


def parse_options(options: list[str]) -> dict:
    """["a=true", "b=2"] to the compiler's options; ValueError for one without a value."""
    words = {"true": True, "false": False}
    parsed = {}
    for option in options:
        name, found, value = option.partition("=")
        if not found:
            raise ValueError(f"--option {option}: write it as NAME=VALUE")
        parsed[name] = words.get(value, int(value) if value.lstrip("-").isdigit() else value)
    return parsed


def read_json(path: Path) -> list[dict]:
    """The rows of a JSON file; none if there is no file."""
    return text_files.read_json(path) if path.exists() else []


def write_json(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(rows, indent=1) + "\n")


def installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def matches(row: dict, asked: dict) -> bool:
    """Whether a row of a JSON file is of the requested program, by the same compiler."""
    versions = {name: installed(name) for name in row["versions"]}
    known = {**row, "options": row["compile"]["options"]}
    return row["versions"] == versions and all(known.get(k) == v for k, v in asked.items())


@command
def main(argv: list[str] | None = None) -> None:
    logging.getLogger("absl").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(
        prog="python -m persongen_jax.aot",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--topology", default="v5e:4x4", help="chips, e.g. v5e:4x4, v5p:4x4x4, v6e:4x4")
    add("--per_chip_batch", type=int, default=DEFAULT_BATCH, help="images per chip")
    add("--search", action="store_true", help="find the largest batch per chip that fits")
    add("--what", default="train", choices=KINDS, help="the program")
    add("--cached", action="store_true", help="a step on cached features, no frozen encoders")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="of the compiler")
    add("--text", type=Path, metavar="FILE", help="write the compiled program there, with cycles")
    add("--json", type=Path, metavar="FILE", help="write there; added to if it is there")
    args, config = parse_with_config(parser, argv, "configs/photomaker_bg.py")
    options = parse_options(args.option)
    kw = {"what": args.what, "cached": args.cached, "options": options}
    if args.text:
        kw["text"] = args.text
    before = read_json(args.json) if args.json else []
    program = {
        "config": args.config,
        "overrides": json.loads(json.dumps(args.overrides, default=str)),  # as it will be read
    }

    def keep(row):
        row.update(program)
        if args.json:
            write_json(args.json, [*before, row])

    if args.search:
        asked = {**program, "topology": args.topology, "what": args.what}
        asked |= {"cached": args.cached, "options": options}
        same = [row for row in before if matches(row, asked)]
        # A search that goes on takes the place of what it had written.
        before = [row for row in before if row not in same or "tries" not in row]
        kw |= {"keep": keep, "before": same}

    run = search if args.search else compile_for_topology
    row = run(config, args.topology, args.per_chip_batch, **kw)
    keep(row)
    print(report(row))


if __name__ == "__main__":
    main()
