"""Checks a pipeline call: whether its arguments are valid, and whether they have an effect.

An invalid argument raises with one sentence; one that has no effect, or is cut, is a
:class:`CallWarning`, which ``generate`` prints as a line.
"""

import operator
import os
import sys
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data_pipeline.prompt_syntax import plain_syntax
from data_pipeline.prompts import has_trigger


class CallWarning(UserWarning):
    """Part of a call has no effect, or an unexpected one."""


def tell(message: str):
    """Warn about a call; Python reports the line outside this package that made it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("persongen_jax.pipeline"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, CallWarning, stacklevel=level)


# ---- Validity -------------------------------------------------------------------------


def texts_of(name: str, given) -> list[str]:
    """One text or several, as a list; ValueError for anything else, and for an empty list."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"{name} is {_kind(given)}: give a text, or a list of texts")
    if not given:
        raise ValueError(f"{name} is an empty list: give at least one text")
    for number, text in enumerate(given, 1):
        check_text(name if len(given) == 1 else f"{name} {number} of {len(given)}", text)
    return list(given)


def check_text(name: str, text):
    """ValueError unless it is text that can be encoded."""
    if not isinstance(text, str):
        raise ValueError(f"{name} is {_kind(text)}: give a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise ValueError(
            f"{name} is {text!r}, with half of a character (U+{half:04X}) at {error.start}: give "
            "text in UTF-8"
        ) from None


def one_each(texts, count: int, what: str) -> list:
    """One text (or None) for all, or one each."""
    if texts is None or isinstance(texts, str):
        texts = [texts] * count
    if not isinstance(texts, (list, tuple)):
        raise ValueError(f"{what}: {_kind(texts)}; give a text, or one for each of {count} prompts")
    if len(texts) != count:
        raise ValueError(f"{len(texts)} {what} for {count} prompts: give one, or one each")
    for number, text in enumerate(texts, 1):
        if text is not None:
            check_text(f"number {number} of the {what}", text)
    return list(texts)


def check_numbers(least: int = 1, **numbers):
    """ValueError unless each is a whole number of at least ``least``, or None."""
    for name, number in numbers.items():
        if number is None:
            continue
        try:
            operator.index(number)
        except TypeError:
            raise ValueError(f"{name} is {_kind(number)}: give a whole number") from None
        if number < least:
            raise ValueError(f"{name}={number}: give a whole number of at least {least}")


def check_finite(**numbers):
    """ValueError unless each is a finite number."""
    for name, number in numbers.items():
        try:
            finite = not isinstance(number, (str, bytes)) and bool(np.isfinite(float(number)))
        except (TypeError, ValueError):
            finite = False
        if not finite:
            raise ValueError(f"{name}={number!r}: give a finite number")


def check_path(name: str, path):
    """ValueError unless it can be a path."""
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ValueError(f"{name} is {_kind(path) if path != '' else 'empty'}: give a path")


def check_pairs(**pairs):
    """ValueError unless each is (height, width) in whole numbers, or None."""
    for name, pair in pairs.items():
        if pair is None:
            continue
        good = isinstance(pair, (tuple, list, np.ndarray)) and len(pair) == 2
        if not good:
            raise ValueError(f"{name}={pair!r}: give (height, width), two whole numbers of pixels")
        check_numbers(-(2**31), **{f"{name}[{i}]": value for i, value in enumerate(pair)})


def check_kinds(kind, wanted: str, **given):
    """ValueError unless each is of this kind, or None."""
    for name, value in given.items():
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{name} is {_kind(value)}: give {wanted}")


def _kind(given) -> str:
    if isinstance(given, (int, float, np.number, type(None))):
        return repr(given)
    return f"of type {type(given).__name__}"


# ---- Effects ----------------------------------------------------------------------------


def usual_merge_step(steps: int) -> int:
    """The default last step in which the prompt alone acts: a fifth of all steps.

    PhotoMaker's released demo has a default style strength of 20 %, of at most 30 steps. However
    few steps there are, the identity acts in the last one.
    """
    return min(30, steps // 5, steps - 2)


class Options(NamedTuple):
    """The arguments of a call that other arguments may make ineffective; None: not given."""

    guidance_scale: float
    guidance_rescale: float
    start_merge_step: int | None
    seed: int | None
    latents: object
    tiling: bool
    tile_size: int | None
    output_type: str

    def check(self, num_inference_steps, num_images_per_prompt, height, width, batch_size):
        """ValueError unless all are valid; the arguments here must be whole numbers, at least 1."""
        if num_inference_steps is None or num_images_per_prompt is None:
            raise ValueError(
                f"num_inference_steps={num_inference_steps}, num_images_per_prompt="
                f"{num_images_per_prompt}: give whole numbers"
            )
        check_numbers(
            num_inference_steps=num_inference_steps,
            num_images_per_prompt=num_images_per_prompt,
            height=height,
            width=width,
            batch_size=batch_size,
            tile_size=self.tile_size,
        )
        if self.output_type not in ("pil", "np", "latent"):
            raise ValueError(f"output_type={self.output_type!r}: use 'pil', 'np' or 'latent'")
        check_numbers(-(2**31), start_merge_step=self.start_merge_step)
        check_numbers(-(2**63), seed=self.seed)
        if self.seed is not None and self.seed >= 2**63:
            raise ValueError(f"seed={self.seed}: give a whole number below 2**63")
        check_finite(guidance_scale=self.guidance_scale, guidance_rescale=self.guidance_rescale)
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale={self.guidance_rescale:g}: give 0 (none) to 1")
        if not isinstance(self.tiling, (bool, np.bool_)):
            raise ValueError(f"tiling is {self.tiling!r}: give True or False")
        if isinstance(self.latents, (str, bytes)):
            raise ValueError("latents: a text; give an array [n, h / 8, w / 8, 4]")

    def merge_step(self, plan) -> int:
        """The last step in which the prompt alone acts."""
        own = self.start_merge_step
        return usual_merge_step(plan.num_steps) if own is None else own

    def without_effect(self, negatives, identity: bool, plan) -> Iterator[str]:
        """Sentences about arguments without an effect; ``identity``: whether references act."""
        if self.guidance_scale <= 1:
            off = f"guidance_scale={self.guidance_scale:g} turns guidance off"
            if self.guidance_scale not in (0, 1):
                yield f"{off}; it acts above 1"
            if any(negatives):
                yield f"the negative prompt has no effect: {off}"
            if self.guidance_rescale:
                yield f"guidance_rescale={self.guidance_rescale:g} has no effect: {off}"
        if self.seed is not None and self.latents is not None and not plan.stochastic:
            yield (
                f"seed={self.seed} has no effect: latents are given, and {plan.name} draws no noise"
            )
        if self.tiling and self.output_type == "latent":
            yield "tiling has no effect on output_type='latent', which decodes nothing"
        if self.tile_size is not None and not self.tiling:
            yield f"tile_size={self.tile_size} has no effect without tiling"
        merge_step = self.start_merge_step
        if merge_step is not None and not identity:
            yield f"start_merge_step={merge_step} has no effect without references"
        elif merge_step is not None and merge_step >= plan.num_steps - 1:
            yield (
                f"start_merge_step={merge_step} is not before the last of {plan.num_steps} steps: "
                "the references will have no effect"
            )


def cut_parts(text_field, tokenizers, prompts, people, others) -> Iterator[str]:
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


def tell_of_call(
    pipe, prompts, negatives, parts, people, regions, plan, asked, schedules, options: Options
):
    """Warn about what is cut, may be misread, or has no effect.

    Args:
        people, regions, parts: per prompt, checked. asked: the call's scales; schedules: their
            values in each step.
    """
    conditioner = pipe.conditioner
    read = negatives if options.guidance_scale > 1 else ()
    tell_of_texts(conditioner, prompts, read, parts, people)
    texts = [text for given in (prompts, read, *parts.values()) for text in given if text]
    lines = [*options.without_effect(negatives, people is not None, plan)]
    if pipe.base.tokenizers.words:
        lines += pipe.words.without_use(texts)
    if asked:
        identities = {"identity", *conditioner.of_people} if people is not None else ()
        first = max(0, options.merge_step(plan) + 1)
        lines += idle_scales(asked, schedules, identities, first)
    for name, (_, weight) in pipe.adapters.items():
        if weight == 0:
            lines.append(f"LoRA {name}: its weight is 0, so it has no effect")
    if regions is not None:
        for number, persons in enumerate(people, 1):
            for place in range(len(persons)):
                if not regions[number - 1, place].any():
                    lines.append(
                        f"region {place + 1} of prompt {number} is empty: this person appears "
                        "nowhere"
                    )
    for line in lines:
        tell(line)


def tell_of_texts(conditioner, prompts, negatives, parts, people):
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
        tell(line)


def idle_scales(asked: dict, schedules: dict, identities, first: int) -> Iterator[str]:
    """Sentences about strengths that change nothing, or remove everything.

    Args:
        asked: what the call gave, by name. schedules: [steps] by name.
        identities: names that act from step ``first`` on, as the person does.
    """
    for name in asked:
        values = schedules[name][first if name in identities else 0 :]
        if not values.size:
            continue
        if not values.any():
            yield f"scales: {name!r} is 0 in every step where it acts, so it has no effect"
        elif np.any(schedules[name] != 1) and np.all(values == 1):
            yield f"scales: {name!r} covers only steps before the person acts, so it has no effect"
        elif not isinstance(asked[name], (int, float, np.number)) and np.all(values == 1):
            if any(value != 1 for *_, value in asked[name]):
                yield f"scales: {name!r} has a range that contains none of the steps"
