"""One restartable loop for every network of the miniature."""

import json
import os
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

SAVE_SECONDS = 120
LOG_EVERY = 50


def fit(name: str, work: Path, state, step, batch_of, steps: int, seed: int = 0):
    """Runs ``state, metrics = step(state, batch, number)`` for numbers 0 … steps - 1.

    The state is saved every two minutes and at the end, and found again; a batch depends on
    its number alone, so an interrupted run ends as one that was not.

    Args:
        state: a pytree of arrays, donated to ``step``.
        step: jitted function.
        batch_of: (numpy Generator, number) to a pytree of host arrays.
        seed: of the batches.

    Returns:
        (state, cost): cost is {"steps", "seconds"} of all runs together.
    """
    path = work / f"{name}.npz"
    number, seconds = 0, 0.0
    if path.exists():
        state, number, seconds = _load(path, state)
    bar = tqdm(range(number, steps), initial=number, total=steps, desc=name, mininterval=5)
    started = saved = time.perf_counter()
    recent = []
    for number in bar:
        batch = batch_of(np.random.default_rng((seed, number)), number)
        state, metrics = step(state, batch, np.int32(number))
        recent.append(metrics)
        if (number + 1) % LOG_EVERY == 0 or number + 1 == steps:
            means = {k: float(np.mean([m[k] for m in recent])) for k in recent[0]}
            bar.set_postfix({k: f"{v:.4f}" for k, v in means.items()})
            row = {"step": number + 1, "seconds": seconds + time.perf_counter() - started, **means}
            with open(work / f"{name}.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
            recent = []
        if time.perf_counter() - saved > SAVE_SECONDS or number + 1 == steps:
            saved = time.perf_counter()
            _save(path, state, number + 1, seconds + saved - started)
    return state, {"steps": steps, "seconds": round(seconds + time.perf_counter() - started, 1)}


def _save(path: Path, state, number: int, seconds: float):
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    partial = path.with_suffix(".part.npz")
    np.savez(partial, number=number, seconds=seconds, **leaves)
    os.replace(partial, path)


def _load(path: Path, state):
    with np.load(path) as arrays:
        leaves, structure = jax.tree.flatten(state)
        stored = [arrays[str(i)] for i in range(len(leaves))]
        if [x.shape for x in stored] != [x.shape for x in leaves]:
            raise ValueError(f"{path} is of another network: delete it to start anew")
        state = jax.tree.unflatten(structure, [jax.numpy.asarray(x) for x in stored])
        return state, int(arrays["number"]), float(arrays["seconds"])
