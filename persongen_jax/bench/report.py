"""The bench's results, as JSON and as tables in Markdown."""

import datetime
import os
import statistics
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from data_pipeline.files import write_text
from persongen_jax.bench.settings import Row
from persongen_jax.tables import markdown
from persongen_jax.weights.saver import write_json

PACKAGES = ("jax", "jaxlib", "flax", "torch", "diffusers", "peft")


def write_report(path: Path, settings: dict, rows: list[Row], counts: list[dict]) -> str:
    """Write ``path``.json and ``path``.md; return the text of the latter."""
    peak = next((row.found for row in rows if "peak_flops" in row.found), {})
    peak = {key: peak[key] for key in ("peak_flops", "peak_origin") if key in peak}
    result = {
        "date": datetime.date.today().isoformat(),
        **settings,
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions(),
        "work": counts,
        "rows": [figures(row, counts, peak) for row in rows],
    }
    result["ratios"] = ratios(result["rows"])
    write_json(path.with_suffix(".json"), result)
    text = as_markdown(result)
    write_text(path.with_suffix(".md"), text)
    return text


def versions() -> dict:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def figures(row: Row, counts: list[dict], peak: dict) -> dict:
    """A row's part of the JSON file; ``peak`` is the device's, whatever framework uses it.

    In addition to settings and measurements: "images_per_second" by the median of its rounds;
    "flops" of an image as our program counts them; "mfu", their share of the device's peak;
    "floor_s" and "gap", the seconds of a step at that peak, and the measured time as its multiple.
    """
    out = {
        "by": row.by,
        "variant": row.variant,
        **{"setting": str(row.setting), "work": row.setting.work, "error": row.error},
        **row.found,
        **peak,
    }
    if row.error or not row.seconds:
        return out
    batch = row.setting.overrides["batch_size"]
    out |= {"batch": batch, "steps": row.steps, "seconds": row.seconds}
    out["step_s"] = statistics.median(row.seconds) / row.steps
    out["images_per_second"] = batch / out["step_s"]
    work = next((c for c in counts if c["of"] == row.setting.image_work and "ours" in c), None)
    if work is not None:
        out["flops"] = work["ours"]
        if "peak_flops" in out:
            out |= against_peak(out)
    return out


def against_peak(row: dict) -> dict:
    floor = row["batch"] * row["flops"] / row["peak_flops"]
    return {"floor_s": floor, "gap": row["step_s"] / floor, "mfu": floor / row["step_s"]}


def ratios(rows: list[dict]) -> list[dict]:
    """For all work that both did: our best setting over each of torch's, and over its best.

    "rounds" holds the ratios within each round, if the rows took turns.
    """
    done = [row for row in rows if "images_per_second" in row]
    found = []
    for work in _distinct(row["work"] for row in done):
        same = [row for row in done if row["work"] == work]
        ours = [row for row in same if row["by"] == "ours"]
        torch = [row for row in same if row["by"] == "torch"]
        if not ours or not torch:
            continue
        best = max(ours, key=_rate)
        for other in sorted(torch, key=_rate, reverse=True):
            pairs = zip(best["seconds"], other["seconds"], strict=False)
            found.append(
                {
                    "work": work,
                    "ours": best["setting"],
                    "torch": other["variant"],
                    "ratio": _rate(best) / _rate(other),
                    "rounds": [t / other["steps"] / (o / best["steps"]) for o, t in pairs],
                }
            )
    return found


def _rate(row: dict) -> float:
    return row["images_per_second"]


def _distinct(items) -> list:
    seen = []
    for item in items:
        if item not in seen:
            seen.append(item)
    return seen


# ---- Markdown ----------------------------------------------------------------------------------

HEAD = ("by", "setting", "images/s", "s/step", "MFU", "peak GiB", "compile s", "loss")


def as_markdown(result: dict) -> str:
    lines = [f"# {result['what']}: {result['config']}", ""]
    devices = _distinct(row["device"] for row in result["rows"] if "device" in row)
    names = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    turns = "rows in turns" if result["in_turns"] else "row after row"
    lines.append(
        f"{result['date']}; {' / '.join(devices) or 'no device answered'}; {result['cores']} CPU "
        f"cores; {names}; {result['rounds']} rounds, {turns}."
    )
    lines += ["", markdown(HEAD, map(_cells, result["rows"])), ""]
    for row in result["rows"]:
        if "gap" in row:
            lines.append(
                f"- {row['by']} {row['variant']} {row['setting']}: "
                f"{row['batch'] * row['flops'] / 1e12:.4g} TFLOP a step, floor "
                f"{row['floor_s']:.4g} s at {row['peak_flops'] / 1e12:.4g} TFLOP/s "
                f"({row['peak_origin']}), taken {row['step_s']:.4g} s: {row['gap']:.2f} x the floor"
            )
    lines.append("")
    lines += [_counted(work) for work in result["work"]]
    if result["ratios"]:
        lines += ["", markdown(RATIO_HEAD, map(_ratio_cells, result["ratios"]))]
    return "\n".join(lines) + "\n"


RATIO_HEAD = ("work", "ours", "torch", "ours / torch", "per round")


def _ratio_cells(ratio: dict) -> list[str]:
    low, high = min(ratio["rounds"]), max(ratio["rounds"])
    spread = f"{low:.2f} to {high:.2f}"
    return [_named(ratio["work"]), ratio["ours"], ratio["torch"], f"{ratio['ratio']:.2f}", spread]


def _counted(work: dict) -> str:
    """The amount of work per image, by our program and by torch's."""
    if "error" in work:
        return f"Work of {_named(work['of'])}: not counted ({work['error']})."
    text = f"Work of an image, {_named(work['of'])}: ours {work['ours'] / 1e12:.6g} TFLOP"
    if "trained" in work:
        text += f", {work['trained']:,} parameters trained"
    if "torch" in work:
        text += f"; torch's {work['torch'] / 1e12:.6g} TFLOP ({work['torch'] / work['ours']:.4f} x)"
        if "trained_torch" in work:
            text += f", {work['trained_torch']:,} trained"
    if "torch_error" in work:
        text += f"; torch's not counted ({work['torch_error']})"
    return text + "."


def _named(values: dict) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())


def _cells(row: dict) -> list[str]:
    by = f"{row['by']} {row['variant']}".strip()
    if "images_per_second" not in row:
        return [by, row["setting"], row["error"] or "not measured", *[""] * (len(HEAD) - 3)]
    low, high = (f(row["seconds"]) / row["steps"] for f in (min, max))
    return [
        by,
        row["setting"],
        f"{row['images_per_second']:.4g}",
        f"{row['step_s']:.4g} ({low:.4g} to {high:.4g})",
        f"{row['mfu']:.1%}" if "mfu" in row else "",
        f"{row['peak_gib']:.2f}" if "peak_gib" in row else "",
        f"{row['compile_s']:.1f}" if "compile_s" in row else "",
        f"{row['loss']:.4f}" if "loss" in row else "",
    ]


def short_message(row: Row) -> str:
    """A row's result for the terminal."""
    if row.error or not row.seconds:
        return row.error
    step = statistics.median(row.seconds) / row.steps
    return f"{row.setting.overrides['batch_size'] / step:.4g} images/s, {step:.4g} s"
