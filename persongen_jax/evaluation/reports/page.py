"""One self-contained HTML page about measured folders: nothing is fetched when it is read."""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from data_pipeline.pictures.reading import ImageError
from persongen_jax.evaluation.folders.pairing import Difference
from persongen_jax.evaluation.folders.scoring import Scores
from persongen_jax.evaluation.groups.by_group import few_line, group_table, missing_line
from persongen_jax.evaluation.reports.results import best_and_worst, group_entries, unmeasured
from persongen_jax.evaluation.reports.tables import (
    Table,
    difference_table,
    failures,
    notes_on_figures,
    number,
    score_table,
)
from persongen_jax.metrics.base import Known

SIDE, SMALL = 160, 56  # pixels of an image's thumbnail, and of a reference's
FAILURES = 24  # images shown of those that a metric could not measure
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
  color: #1a1a1a; background: #fff }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .7rem; text-align: left;
  vertical-align: top }
th { border-bottom: 2px solid #888 }
.wide { overflow-x: auto }
.row { display: flex; flex-wrap: wrap; gap: .8rem; margin: .4rem 0 1rem }
figure { margin: 0; width: 160px; font-size: 12px; overflow-wrap: anywhere }
figure .pair { position: relative; height: 160px; background: #f2f2f2 }
figure .pair img { width: 160px; height: 160px; object-fit: contain }
figure .pair img.reference { position: absolute; left: 0; bottom: 0; width: 48px; height: 48px;
  border: 2px solid #fff }
h3 { margin-bottom: .2rem }
.quiet { color: #666 }
"""


def page(
    scores: Sequence[Scores],
    known: Sequence[Known],
    differences: Sequence[Difference],
    notes: Sequence[str],
) -> str:
    """The page's text.

    Args:
        known: about each folder's people; their first references are shown with the images.
        notes: sentences about all folders.
    """
    names = ", ".join(each.folder.name for each in scores)
    parts = [f"<h1>{escape(names)}</h1>", _table(score_table(scores))]
    parts.append(
        '<p class="quiet">Intervals are about other people of the same kind: people are the '
        "sample, not images. Images that could not be measured are listed below.</p>"
    )
    if differences:
        parts += ["<h2>Differences on the same people, prompts and seeds</h2>"]
        parts.append(_table(difference_table(differences)))
    by_group = group_entries(scores)
    if (groups := group_table(by_group))[1]:
        parts += ["<h2>By group of people</h2>", _table(groups)]
        parts += _list(list(filter(None, [missing_line(by_group), few_line(by_group)])))
    parts += _list([*notes, *(note for each in scores for note in each.folder.notes)])
    for each, of_people in zip(scores, known, strict=True):
        parts += _folder(each, _references(of_people))
    head = f'<meta charset="utf-8"><title>{escape(names)}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _folder(scores: Scores, references: dict[str, str]) -> list[str]:
    """Best, worst and failed images of one folder."""
    folder = scores.folder
    count = f"{len(scores.entries)} images of {len(scores.people)} people ({folder.layout})"
    parts = [f"<h2>{escape(folder.name)}</h2>", f"<p>{escape(count)}</p>"]
    parts += _list(notes_on_figures(scores))
    shown = _Thumbnails(scores, references)
    for name, metric in scores.metrics.items():
        values = scores.of_images(name)
        if values is None or np.isnan(values).all():
            continue
        for title, places in zip(("best", "worst"), best_and_worst(values, metric), strict=True):
            if places:
                captions = [number(float(values[i]), metric.form) for i in places]
                parts.append(f"<h3>{escape(metric.title)}: {title}</h3>")
                parts.append(shown(places, captions))
    lines = failures(scores)
    if lines:
        parts += ["<h3>Left out, or not measured</h3>", *_list(lines)]
    for name, places in unmeasured(scores).items():
        title = f"{scores.metrics[name].title}: not measured"
        parts.append(f"<h3>{escape(title)}</h3>")
        parts.append(shown(places[:FAILURES], ["-"] * len(places[:FAILURES])))
        if len(places) > FAILURES:
            parts.append(f'<p class="quiet">and {len(places) - FAILURES} more</p>')
    return parts


class _Thumbnails:
    """Rows of figures; each image is made once."""

    def __init__(self, scores: Scores, references: dict[str, str]):
        self.scores, self.references = scores, references
        self._made: dict[int, str] = {}

    def __call__(self, places: list[int], captions: list[str]) -> str:
        figures = [self._figure(i, said) for i, said in zip(places, captions, strict=True)]
        return f'<div class="row">{"".join(figures)}</div>'

    def _figure(self, i: int, said: str) -> str:
        entry = self.scores.entries[i]
        if i not in self._made:
            self._made[i] = thumbnail(self.scores.pictures[i], SIDE)
        images = f'<img src="{self._made[i]}" alt="{escape(entry.file)}">'
        if entry.person in self.references:
            source = self.references[entry.person]
            images += f'<img class="reference" src="{source}" alt="reference">'
        text = " · ".join(filter(None, (entry.person, entry.prompt, entry.seed)))
        caption = f"<b>{escape(said)}</b> {escape(text)}"
        images = f'<div class="pair">{images}</div>'
        return f"<figure>{images}<figcaption>{caption}</figcaption></figure>"


def thumbnail(image: np.ndarray, side: int) -> str:
    """A data URI of an image, uint8 [h, w, 3], whose longer side is at most ``side`` pixels."""
    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _references(known: Known) -> dict[str, str]:
    """The first reference of each person who has one, as a data URI."""
    found = {}
    for owner in known.people.owners:
        try:
            first = owner.references()[:1]
        except ImageError:  # its file is gone meanwhile
            continue
        if first:
            found[owner.name] = thumbnail(first[0], SMALL)
    return found


def _table(table: Table) -> str:
    head, rows = table
    titles = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f'<div class="wide"><table><tr>{titles}</tr>\n{body}</table></div>'


def _list(lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    return [f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"]
