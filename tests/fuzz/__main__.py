"""Damage files at random: our readers must read each of them or refuse it by name.

    python -m tests.fuzz --count 2000 --out benchmarks/results/fuzz.md

A file may be read, if the damage is harmless, or refused in a message that names it; never any
other traceback, more than 10 s, or more memory than twice the file and 200 MB.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from persongen_jax.weights.random_base import write_random_base
from tests.fuzz.run import try_all
from tests.fuzz.targets import write_targets


def report(outcomes, faults, count, seconds) -> str:
    heads = ("read", "refused", "failed")
    lines = [f"| file: reader | {' | '.join(heads)} | faults |", "|---|---|---|---|---|"]
    for name, counts in outcomes.items():
        own = sum(fault.target == name for fault in faults)
        lines.append(f"| {name} | {' | '.join(str(counts[h]) for h in heads)} | {own} |")
    lines += ["", f"{count} damaged files in {seconds:.0f} s, {len(faults)} faults."]
    lines += [f"- {fault.target}, seed {fault.seed}: {fault.what}" for fault in faults]
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--only", help="targets whose name contains this")
    parser.add_argument("--traces", action="store_true")
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        write_random_base(base)
        (Path(folder) / "sound").mkdir()
        targets = write_targets(Path(folder, "sound"), base)
        if args.only:
            targets = {name: t for name, t in targets.items() if args.only in name}
        start = time.perf_counter()
        outcomes, faults = try_all(targets, args.count, Path(folder), args.first)
        text = report(outcomes, faults, args.count, time.perf_counter() - start)
    print(text)
    if args.traces:
        print(*(fault.trace for fault in faults), sep="\n")
    if args.out:
        args.out.write_text(
            f"# Damaged files\n\n`python -m tests.fuzz --count {args.count}`\n\n{text}\n"
        )
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
