"""Writes the captions of a batch of views: asks, checks, asks again, and falls back."""

from collections.abc import Sequence

from data_pipeline.collect.captions import template
from data_pipeline.collect.captions.base import Captioner, View, Written, digest
from data_pipeline.collect.captions.contract import Unusable, read_answer
from data_pipeline.collect.settings import Caption


def write_captions(
    views: Sequence[View], captioner: Captioner | None, settings: Caption
) -> list[Written]:
    """The texts of each view.

    All are asked at once; those whose answer cannot be used one by one with the seeds 1, 2, … so
    that what a picture gets does not depend on its neighbours. After ``retries`` of them the
    template stands in and says why.
    """
    if captioner is None:
        return [template.write(view) for view in views]
    answers = captioner.ask(views, 0)
    return [_one(v, a, captioner, settings) for v, a in zip(views, answers, strict=True)]


def _one(view: View, answer: str, captioner: Captioner, settings: Caption) -> Written:
    prompt, why = digest(captioner.prompt), ""
    for seed in range(settings.retries + 1):
        if seed:
            (answer,) = captioner.ask([view], seed)
        try:
            found = read_answer(answer, view, settings.trigger_word, settings.coverage)
        except Unusable as error:
            why = str(error)
            continue
        return Written(
            found.class_word,
            found.caption,
            found.general,
            found.background,
            found.body,
            captioner.name,
            captioner.revision,
            prompt,
            found.coverage,
            seed + 1,
        )
    fallback = f"{captioner.name}: {why}"
    return template.write(view, settings.retries + 1, fallback, prompt)
