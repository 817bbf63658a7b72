"""What raters answered: how often the first folder is preferred, with intervals over people."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.text_files import read_json
from persongen_jax.metrics.intervals.limits import SHARE
from persongen_jax.metrics.intervals.people import Interval
from persongen_jax.metrics.intervals.runs import over_people_and_runs

QUESTIONS = {"likeness": "more like the person", "prompt": "follows the prompt"}
CHOICES = ("left", "right", "same")


@dataclass(frozen=True)
class Preference:
    """How often raters preferred the first folder's image.

    Attributes:
        question: a key of QUESTIONS.
        interval: of the share, over people and raters; "same" counts as half.
        first, second, same: the numbers of answers.
        raters: how many answered the question.
        agreement: of two raters' answers about one pair, the share that are equal; None if no pair
            has two.
    """

    question: str
    interval: Interval
    first: int
    second: int
    same: int
    raters: int
    agreement: float | None


def read_answers(files: Sequence[str | Path], key: dict, where: str) -> dict[str, dict]:
    """{rater's id: {pair: {question: choice}}} of the files that the page saved.

    Files of one rater, who saved more than once, are joined; the later file's answer counts.

    Args:
        key: what rating_key.json holds. where: its path, for messages.

    Raises:
        ValueError: a file of another page, or one that the page did not save.
    """
    found: dict[str, dict] = {}
    for file in files:
        said: Any = read_json(file)
        if not _is_saved(said):
            raise ValueError(f"{file}: holds no answers; give what the rating page saved")
        if said["page"] != key["page"]:
            raise ValueError(f"{file}: answers of another page than that of {where}")
        for pair, answers in said["answers"].items():
            wrong = [c for q, c in answers.items() if q not in QUESTIONS or c not in CHOICES]
            if pair not in key["pairs"] or wrong:
                raise ValueError(f"{file}: answers to {pair!r} that the page does not ask for")
        own = found.setdefault(str(said["id"]), {})
        for pair, answers in said["answers"].items():
            own.setdefault(pair, {}).update(answers)
    return found


def _is_saved(said: Any) -> bool:
    """Whether a file's content has the form that the page gives it."""
    if not isinstance(said, dict) or not {"page", "id", "answers"} <= said.keys():
        return False
    answers = said["answers"]
    return isinstance(answers, dict) and all(isinstance(own, dict) for own in answers.values())


def preferences(answers: dict[str, dict], key: dict) -> list[Preference]:
    """One for each question that anybody answered."""
    found = (_preference(question, answers, key) for question in QUESTIONS)
    return [each for each in found if each is not None]


def _preference(question: str, answers: dict[str, dict], key: dict) -> Preference | None:
    people = sorted({pair["person"] for pair in key["pairs"].values()})
    place = {person: i for i, person in enumerate(people)}
    sums, counts, votes = [], [], {}
    for own in answers.values():
        given = {pair: said[question] for pair, said in own.items() if question in said}
        if not given:
            continue
        row_sums, row_counts = np.zeros(len(people)), np.zeros(len(people))
        for name, choice in given.items():
            pair = key["pairs"][name]
            value = _value(choice, pair["first_is_left"])
            votes.setdefault(name, []).append(value)
            row_sums[place[pair["person"]]] += value
            row_counts[place[pair["person"]]] += 1
        sums.append(row_sums)
        counts.append(row_counts)
    if not sums:
        return None
    values = [value for own in votes.values() for value in own]
    both = [
        float(a == b) for own in votes.values() for i, a in enumerate(own) for b in own[i + 1 :]
    ]
    return Preference(
        question,
        over_people_and_runs(np.array(sums), np.array(counts), SHARE),
        values.count(1.0),
        values.count(0.0),
        values.count(0.5),
        len(sums),
        float(np.mean(both)) if both else None,
    )


def _value(choice: str, first_is_left: bool) -> float:
    """1 if the first folder's image is preferred, 0 if the second's, 0.5 for neither."""
    if choice == "same":
        return 0.5
    return float((choice == "left") == first_is_left)
