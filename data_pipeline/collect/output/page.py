"""The report as one page: no file beside it and nothing from the network is needed."""

from html import escape
from typing import Any

STYLE = """body{font:15px/1.5 sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}
td,th{padding:.2rem .7rem;border-bottom:1px solid #ccc;text-align:left}
td.n{text-align:right}img{max-width:100%}figure{display:inline-block;margin:.5rem}
figcaption{font-size:13px}"""
WIDTH, HEIGHT = 330, 110  # of a histogram, pixels


def page(report: dict[str, Any], sheets: dict[str, str]) -> str:
    """HTML of report.py's report; ``sheets``: title to a data: address."""
    without = report["without_consent"]
    first = f"{report['kept']} of {report['pictures']} pictures, from {report['names']} names. "
    first += f"Pictures without consent: {without['pictures']} ({without['share']:.1%})."
    parts = [f"<h1>{escape(report['name'])}</h1>", f"<p>{escape(first)}</p>"]
    parts += ["<h2>Stages</h2>", _stages(report["stages"])]
    sets = [(name, n["people"], n["pictures"]) for name, n in report["sets"].items()]
    parts += ["<h2>Sets</h2>", _table(("set", "people", "pictures"), sets)]
    parts += ["<h2>Verification</h2>", _verification(report)]
    parts += ["<h2>Measurements</h2>"]
    parts += [_histogram(name, found) for name, found in report["histograms"].items()]
    for title in ("licences", "sources", "class_words", "captioners", "fallbacks"):
        if report[title]:
            heading = title.replace("_", " ")
            parts += [
                f"<h2>{heading.capitalize()}</h2>",
                _table((heading, "n"), report[title].items()),
            ]
    parts += ["<h2>Networks</h2>", *(f"<p>{escape(line)}</p>" for line in report["networks"])]
    for title, sheet in sheets.items():
        parts += [f"<h3>{escape(title)}</h3>", f'<img src="{sheet}" alt="{escape(title)}">']
    body = "\n".join(parts)
    title = escape(report["name"])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _stages(stages: list[dict[str, Any]]) -> str:
    rows = []
    for stage in stages:
        rows.append((stage["stage"], stage["in"], stage["out"], ""))
        rows += [("", "", f"-{n}", reason) for reason, n in stage["reasons"].items()]
    return _table(("stage", "in", "out", "reason"), rows)


def _verification(report: dict[str, Any]) -> str:
    found = report["verification"]
    rows = [
        (rule, n, "used" if rule == found["used"] else "")
        for rule, n in found["would_drop"].items()
    ]
    text = _table(("rule", "would drop", ""), rows)
    if report["merged"]:
        text += "<p>Names that are one person:</p>"
        text += _table(("name", "name", "cosine"), report["merged"])
    if report["nearest_across_sets"]:
        one, other, cosine = report["nearest_across_sets"]
        text += (
            f"<p>The two people of different sets who look most alike: {escape(one)} and "
            f"{escape(other)}, cosine {cosine:.2f}.</p>"
        )
    return text


def _table(head: Any, rows: Any) -> str:
    def cell(value: Any) -> str:
        number = isinstance(value, int | float)
        return f"<td{' class=n' if number else ''}>{escape(str(value))}</td>"

    lines = ["".join(f"<th>{escape(str(name))}</th>" for name in head)]
    lines += ["".join(map(cell, row)) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _histogram(name: str, found: dict[str, Any]) -> str:
    """Bars, and a red line where the threshold is."""
    counts, edges = found["counts"], found["edges"]
    low, high, top = edges[0], edges[-1], max(counts) or 1
    width = WIDTH / len(counts)
    bars = "".join(
        f'<rect x="{i * width:.1f}" y="{HEIGHT * (1 - n / top):.1f}" width="{width - 1:.1f}" '
        f'height="{HEIGHT * n / top:.1f}" fill="#4a7"/>'
        for i, n in enumerate(counts)
    )
    limit = found["threshold"]
    if limit is not None and low <= limit <= high and high > low:
        x = WIDTH * (limit - low) / (high - low)
        bars += (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEIGHT}" stroke="#c22" stroke-width="2"/>'
        )
    said = f"{name}: {low:g} to {high:g}" + (f", threshold {limit:g}" if limit is not None else "")
    return (
        f'<figure><svg width="{WIDTH}" height="{HEIGHT}" role="img">{bars}</svg>'
        f"<figcaption>{escape(said)}</figcaption></figure>"
    )
