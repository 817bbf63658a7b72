"""Held-out people, batches, and figures with their intervals."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from data_pipeline.drawing import people
from data_pipeline.prompts import join_parts, split_at_trigger
from persongen_jax.metrics.intervals.limits import SHARE
from persongen_jax.metrics.intervals.people import Interval, over_answers, over_people

SPLIT = "out_of_train"
FIRST_PICTURE = 5_000_000  # variations that no training set contains
PORTRAITS = (1, 0, 0)
BATCH = 50
RESAMPLED = 2000


def held_out(
    people_count: int,
    pictures: int,
    first: int = 0,
    split: str = SPLIT,
    portrait: bool = False,
    faults: people.Faults | None = None,
) -> people.People:
    """``pictures`` images of each of ``people_count`` people, person by person."""
    number = np.arange(people_count * pictures)
    framing = PORTRAITS if portrait else people.FRAMING_WEIGHTS
    return people.examples(
        *(split, number // pictures, FIRST_PICTURE + first + number),
        framing_weights=framing,
        faults=faults,
    )


def whole_prompts(drawn: people.People) -> list[str]:
    """The three captions as one, without the trigger word."""
    parts = zip(drawn.captions, drawn.backgrounds, drawn.bodies, strict=True)
    return [join_parts("".join(split_at_trigger(g)), b, c) for g, b, c in parts]


def batched(function: Callable, *arrays: np.ndarray) -> Any:
    """``function`` over rows in batches of one size, so that it compiles once."""
    count = len(arrays[0])
    outputs = []
    for start in range(0, count, BATCH):
        rows = [array[start : start + BATCH] for array in arrays]
        short = BATCH - len(rows[0])
        rows = [np.concatenate([r, np.repeat(r[-1:], short, 0)]) if short else r for r in rows]
        output = jax.tree.map(lambda x, n=BATCH - short: np.asarray(x)[:n], function(*rows))
        outputs.append(output)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


def compiled(model: nnx.Module, call: Callable) -> Callable:
    """``call(model, batch)`` under jit with the weights as arguments.

    Hundreds of images are worth the compiler's full effort, also where the tests ask for less.
    """
    graphdef, state = nnx.split(model)
    run = jax.jit(
        lambda state, *batch: call(nnx.merge(graphdef, state), *batch),
        compiler_options={"xla_backend_optimization_level": "3"},
    )
    return lambda *batch: run(state, *batch)


def share(right: np.ndarray, cluster: np.ndarray | None = None, **goal: Any) -> dict:
    """The figure of answers [n], right or wrong.

    ``cluster`` [n]: whose answers depend on one another, such as those about one person.
    """
    of = over_answers(right) if cluster is None else over_people(right, cluster, SHARE)
    return of_interval(of, **goal)


def mean_of(values: np.ndarray, cluster: np.ndarray, **goal: Any) -> dict:
    """The figure of values [n]; ``cluster`` as in ``share``."""
    return of_interval(over_people(values, cluster), **goal)


def of_interval(found: Interval, **goal: Any) -> dict:
    """The figure of a mean with its interval; ValueError if it has none."""
    if found.mean is None or found.low is None or found.high is None:
        raise ValueError(f"a figure without an interval: {found.reason}")
    return figure(found.mean, found.n, (found.low, found.high), **goal)


def relative(generated: np.ndarray, drawn: np.ndarray, **goal: Any) -> dict:
    """What a judge finds in generated images, as a share of what it finds in drawn ones.

    Both are answers [n], right or wrong, about images of the same prompts. The interval is of the
    ratio, by resampling prompts.
    """
    generated, drawn = (np.asarray(right, np.float64) for right in (generated, drawn))
    rows = np.random.default_rng(0).integers(len(drawn), size=(RESAMPLED, len(drawn)))
    ratios = generated[rows].mean(1) / drawn[rows].mean(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    value = generated.mean() / drawn.mean()
    means = {"generated": round(float(generated.mean()), 4), "drawn": round(float(drawn.mean()), 4)}
    return figure(value, len(drawn), (float(low), float(high)), **goal) | means


def figure(
    value: float,
    samples: int,
    interval: tuple[float, float],
    bar: float | None = None,
    aim: float | None = None,
    at_most: bool = False,
    judge: str = "",
) -> dict:
    """One entry of figures.json; ``met`` if the bar is, with ``at_most`` if the value is below."""
    entry: dict[str, Any] = {"value": round(float(value), 4), "samples": samples}
    entry["interval"] = [round(float(end), 4) for end in interval]
    if bar is not None:
        entry |= {"bar": bar, "met": bool(value <= bar if at_most else value >= bar)}
    if aim is not None:
        entry["aim"] = aim
    return entry | ({"judge": judge} if judge else {})
