"""The tables of docs/aot.md, from benchmarks/results/aot.json.

    python -m benchmarks.aot_tables          # writes them into docs/aot.md
    python -m benchmarks.aot_tables --check  # reports whether they are up to date

Each is between two comments that name it; nothing in them is written by hand.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from persongen_jax.tables import markdown

ROOT = Path(__file__).parents[1]
RESULTS, DOCUMENT = ROOT / "benchmarks/results/aot.json", ROOT / "docs/aot.md"
GIB = 2**30


def milliseconds(row, name) -> str:
    return f"{row['seconds'][name] * 1e3:.1f}"


def percent(row, name) -> str:
    return f"{row['mfu'][name]:.0%}"


COMMON = (
    ("images per chip", lambda row: str(row["per_chip_batch"])),
    ("memory, GiB", lambda row: f"{row['bytes']['total'] / GIB:.1f}"),
    ("TFLOP per chip", lambda row: f"{row['flops']['of the model'] / 1e12:.2f}"),
    ("optimal, ms", lambda row: milliseconds(row, "optimal")),
    ("MFU", lambda row: percent(row, "optimal")),
    ("cycles, ms", lambda row: milliseconds(row, "cycles")),
    ("MFU", lambda row: percent(row, "cycles")),
)


def collective_mib(row) -> str:
    return f"{sum(each['bytes'] for each in row['collectives'].values()) / 2**20:.1f}"


def options(row) -> str:
    return " ".join(f"`{k}={v}`" for k, v in row["compile"]["options"].items()) or "none"


def compiled_in(row) -> str:
    work = row["compile"]
    minutes = (work["tracing_s"] + work["compiling_s"]) / 60
    return f"{minutes:.0f} min, {work['peak_rss'] / GIB:.1f} GiB"


def encoders(row) -> str:
    """Where the frozen encoders of a training step are."""
    if not row["cached"]:
        return "in the step"
    return "cached, on the host" if row["overrides"].get("offload_encoders") else "cached"


def compiled_work(row) -> str:
    """The compiler's count over the model's: the excess over the minimum is recomputation."""
    return f"{row['flops']['by the compiler'] / row['flops']['of the model']:.1%}"


def speeds(row) -> str:
    """Images per second and chip by the two estimates."""
    return " / ".join(f"{row['images_per_second'][name]:.1f}" for name in ("optimal", "cycles"))


def floor(row) -> str:
    """The model's products at the chip's peak."""
    return milliseconds(row, "floor")


def is_second(row) -> bool:
    """Whether the step runs a ControlNet in addition to the UNet."""
    return row["what"] == "train" and row["method"] == "facecdm"


def is_losses(row) -> bool:
    """Whether the step is one of those with and without losses on decoded images."""
    return row["what"] == "train" and row["method"] == "bolid"


def is_personal(row) -> bool:
    """Whether it trains LoRA on one person, on one chip."""
    return row["what"] == "train" and row["method"] == "lora"


def losses_of(row) -> str:
    """Which of the losses' variants it is, from what the command changes of configs/bolid.py."""
    changed = row["overrides"]
    table = changed.get("losses")  # as text
    if table is not None:
        return "none" if str(table).strip() == "{}" else " ".join(str(table).split())
    side = changed.get("losses_downscale", 1)
    reduced = "" if side == 1 else f", decoded at 1/{side} of the side"
    return "keypoints (by a stand-in), clip" + reduced


def is_scaling(row) -> bool:
    """Whether rows differ only in the number of chips."""
    same = (row["what"], row["chip"], row["fsdp"]) == ("train", "v5e", 4)
    return same and not is_losses(row)


STEP = (
    ("encoders", encoders),
    ("fsdp", lambda row: str(row["fsdp"])),
    *COMMON,
    ("images/s per chip, optimal / cycles", speeds),
    ("compiled FLOP", compiled_work),
    ("collectives, MiB per chip", collective_mib),
    ("compiled in", compiled_in),
)

# Name -> (which rows, additional columns after the topology).
TABLES = {
    "yardstick": (
        lambda row: row["what"] == "yardstick",
        (
            ("remat", lambda row: "yes" if row["remat"] else "no"),
            ("compiler options", options),
            *COMMON,
        ),
    ),
    "step": (
        lambda row: (
            row["what"] == "train"
            and not (is_scaling(row) or is_second(row) or is_losses(row) or is_personal(row))
        ),
        STEP,
    ),
    "personal": (
        is_personal,
        (("kernels", lambda row: row["overrides"].get("quantize") or "bfloat16"), *STEP),
    ),
    "second": (is_second, (*STEP[:-1], ("floor, ms", floor), STEP[-1])),
    "losses": (is_losses, (("losses", losses_of), *STEP)),
    "scaling": (lambda row: row["what"] == "train" and is_scaling(row), STEP),
    "encode": (lambda row: row["what"] == "encode", COMMON),
    "sample": (
        lambda row: row["what"] == "sample",
        (("steps", lambda row: str(row["steps"])), *COMMON),
    ),
}


def table(name: str, rows: list[dict]) -> str:
    chosen, columns = TABLES[name]
    rows = [row for row in rows if chosen(row)]
    if not rows:
        return "Not compiled yet."
    columns = (("topology", lambda row: row["topology"]), *columns)
    cells = [[cell(row) for _, cell in columns] for row in rows]
    return markdown([title for title, _ in columns], cells)


def filled(text: str, rows: list[dict]) -> str:
    """The document with updated tables; ValueError for one without its comments."""
    for name in TABLES:
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, found = pattern.subn(lambda m, n=name: m[1] + table(n, rows) + "\n" + m[2], text)
        if found != 1:
            raise ValueError(f"{DOCUMENT}: <!-- {name} --> ... <!-- end --> is there {found} times")
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if outdated")
    check = parser.parse_args().check
    text = DOCUMENT.read_text()
    new = filled(text, json.loads(RESULTS.read_text()) if RESULTS.exists() else [])
    if check:
        sys.exit(0 if new == text else f"{DOCUMENT} is outdated: python -m benchmarks.aot_tables")
    DOCUMENT.write_text(new)


if __name__ == "__main__":
    main()
