"""Checks a pipeline call: whether its arguments are valid, and whether they have an effect.

An invalid argument raises with one sentence; one that has no effect, or is cut, is a
:class:`CallWarning`, which ``generate`` prints as a line.
"""

import os
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.examples.conditions import Text
from data_pipeline.prompt_syntax import plain_syntax
from data_pipeline.prompts import Tokenizers, has_trigger
from persongen_jax.diffusion.options import SamplingOptions, kind_of
from persongen_jax.diffusion.plan import Plan


class CallWarning(UserWarning):
    """Part of a call has no effect, or an unexpected one."""


def warn_of_call(message: str) -> None:
    """Warn about a call; Python reports the line outside this package that made it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("persongen_jax.pipeline"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, CallWarning, stacklevel=level)


# ---- Validity -------------------------------------------------------------------------


def as_texts(name: str, given: Any) -> list[str]:
    """One text or several, as a list; ValueError for anything else, and for an empty list."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"{name} is {kind_of(given)}: give a text, or a list of texts")
    if not given:
        raise ValueError(f"{name} is an empty list: give at least one text")
    for number, text in enumerate(given, 1):
        check_text(name if len(given) == 1 else f"{name} {number} of {len(given)}", text)
    return list(given)


def check_text(name: str, text: Any) -> None:
    """ValueError unless it is text that can be encoded."""
    if not isinstance(text, str):
        raise ValueError(f"{name} is {kind_of(text)}: give a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise ValueError(
            f"{name} is {text!r}, with half of a character (U+{half:04X}) at {error.start}: give "
            "text in UTF-8"
        ) from None


def broadcast_texts(texts: Any, count: int, what: str) -> list:
    """One text (or None) for all, or one each."""
    if texts is None or isinstance(texts, str):
        texts = [texts] * count
    if not isinstance(texts, (list, tuple)):
        raise ValueError(
            f"{what}: {kind_of(texts)}; give a text, or one for each of {count} prompts"
        )
    if len(texts) != count:
        raise ValueError(f"{len(texts)} {what} for {count} prompts: give one, or one each")
    for number, text in enumerate(texts, 1):
        if text is not None:
            check_text(f"number {number} of the {what}", text)
    return list(texts)


def check_path(name: str, path: Any) -> None:
    """ValueError unless it can be a path."""
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ValueError(f"{name} is {kind_of(path) if path != '' else 'empty'}: give a path")


def check_kinds(kind: Any, wanted: str, **given: Any) -> None:
    """ValueError unless each is of this kind, or None."""
    for name, value in given.items():
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{name} is {kind_of(value)}: give {wanted}")


# ---- Effects ----------------------------------------------------------------------------


def cut_parts(
    text_field: Text,
    tokenizers: Tokenizers,
    prompts: Sequence[str],
    people: Sequence | None,
    others: Iterable[tuple[str, str]],
) -> Iterator[str]:
    """One sentence per text that exceeds the 77 tokens that the text towers read.

    Args:
        people: per prompt, or None without references. others: (name, text).
    """
    for number, prompt in enumerate(prompts):
        if people is None:
            cut = tokenizers.cut_part(prompt)
        else:
            # The text read has no trigger word, but possibly the class token once per reference.
            _, class_tokens_mask, read = text_field.read(prompt, len(people[number][0]))
            cut = tokenizers.cut_part(read, copies=max(1, class_tokens_mask.sum()))
        if cut:
            yield f'the prompt is too long; this part is cut: "{cut}"'
    for name, text in others:
        cut = tokenizers.cut_part(text)
        if cut:
            yield f'the {name} is too long; this part is cut: "{cut}"'


def warn_of_ineffective_options(
    pipe: Any,
    prompts: Sequence[str],
    negatives: Sequence[str | None],
    parts: Mapping[str, Sequence[str | None]],
    people: Sequence | None,
    regions: np.ndarray | None,
    plan: Plan,
    schedules: dict,
    options: SamplingOptions,
    latents: Any,
) -> None:
    """Warn about what is cut, may be misread, or has no effect.

    Args:
        people: of each prompt, checked, like ``regions`` and ``parts``.
        options: SamplingOptions.
        schedules: what its scales are in each step.
        latents: of the call, or None.
    """
    conditioner = pipe.conditioner
    read = negatives if options.guides else ()
    warn_of_texts(conditioner, prompts, read, parts, people)
    texts = [text for given in (prompts, read, *parts.values()) for text in given if text]
    lines = [*options.without_effect(plan, negatives, people is not None, latents is not None)]
    if pipe.base.tokenizers.words:
        lines += pipe.words.unused(texts)
    if options.scales:
        identities = {"identity", *conditioner.of_people} if people is not None else ()
        first = max(0, options.merge_step(plan.num_steps, plan.calls_per_step) + 1)
        usual = dict(conditioner.method.scales) if conditioner.method else {}
        lines += ineffective_scales(options.scales, schedules, identities, first, usual)
    for name, (_, weight) in pipe.adapters.items():
        if weight == 0:
            lines.append(f"LoRA {name}: its weight is 0, so it has no effect")
    if regions is not None:
        for number, persons in enumerate(people or (), 1):
            for place in range(len(persons)):
                if not regions[number - 1, place].any():
                    lines.append(
                        f"region {place + 1} of prompt {number} is empty: this person appears "
                        "nowhere"
                    )
    for line in lines:
        warn_of_call(line)


def warn_of_texts(
    conditioner: Any,
    prompts: Sequence[str],
    negatives: Sequence[str | None],
    parts: Mapping[str, Sequence[str | None]],
    people: Sequence | None,
) -> None:
    """Warn about texts that are cut or may be misread."""
    others = [("negative prompt", text) for text in negatives if text]
    others += [(name, text) for name, texts in parts.items() for text in texts if text]
    tokenizers, text_field = conditioner.base.tokenizers, conditioner.text
    others = list(dict.fromkeys(others))
    lines = list(cut_parts(text_field, tokenizers, prompts, people, others))
    for text in (*prompts, *(text for _, text in others)):
        lines += plain_syntax(text)
    if people is None and conditioner.identity and text_field.at_trigger:
        word = text_field.trigger_word
        if any(has_trigger(prompt, word) for prompt in prompts):
            lines.append(f'no references: the trigger word "{word}" is read like any other word')
    for line in dict.fromkeys(lines):
        warn_of_call(line)


def ineffective_scales(
    asked: dict,
    schedules: dict,
    identities: Collection[str],
    first: int,
    usual: Mapping[str, float],
) -> Iterator[str]:
    """Sentences about strengths that change nothing, or remove everything.

    Args:
        asked: what the call gave, by name. schedules: [steps] by name.
        identities: names that act from step ``first`` on, as the person does.
        usual: strengths without a call's, where they are not 1.
    """
    for name in asked:
        own = np.float32(usual.get(name, 1.0))
        values = schedules[name][first if name in identities else 0 :]
        if not values.size:
            continue
        if not values.any():
            yield f"scales: {name!r} is 0 in every step where it acts, so it has no effect"
        elif np.any(schedules[name] != own) and np.all(values == own):
            yield f"scales: {name!r} covers only steps before the person acts, so it has no effect"
        elif not isinstance(asked[name], (int, float, np.number)) and np.all(values == own):
            if any(np.float32(value) != own for *_, value in asked[name]):
                yield f"scales: {name!r} has a range that contains none of the steps"
