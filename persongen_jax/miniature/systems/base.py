"""What the miniature's systems share: the pool, examples drawn from it, and other stages' runs.

``config.work`` is a folder with the pool, arrays derived from it, and a run's folder per stage,
named like the stage.
"""

import abc
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.prompts import Tokenizers
from persongen_jax.miniature.pool import Pool, open_pool, open_tokenizers
from persongen_jax.systems.base import System, spec_of
from persongen_jax.systems.open import open_run


class Drawn:
    """A source (data_pipeline.examples.batches.Source) whose examples are drawn at random.

    Args:
        make: (random generator, n) to example number n, a flat dict of arrays. The generator is a
            function of ``seed`` and ``n``.
        fingerprint: of the data that ``make`` reads.
        samples: indices of examples, one of every shape that occurs.
    """

    def __init__(
        self, make: Callable, *, seed: int, fingerprint: str, samples: Sequence[int] = (0,)
    ):
        self._make, self.seed, self.fingerprint = make, seed, fingerprint
        self.specs = [spec_of(self.example(n)) for n in samples]

    def example(self, n: int) -> dict[str, np.ndarray]:
        return self._make(np.random.default_rng((self.seed, n)), n)


class PoolSystem(System):
    """A network that is trained on the pool."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self.model = self.network()

    @classmethod
    def defaults(cls) -> ConfigDict:
        config = super().defaults()
        config.work = "runs/miniature"  # the folder with the pool and the runs
        config.lr_model = 1e-3
        return config

    @classmethod
    def abstract(cls, config: ConfigDict) -> Self:
        system = cls(config)  # small enough to open
        system.model = nnx.eval_shape(lambda: nnx.clone(system.model))
        return system

    @property
    def label(self) -> str:
        return type(self).__name__

    @property
    def work(self) -> Path:
        return Path(self.config.work)

    @functools.cached_property
    def pool(self) -> Pool:
        return open_pool(self.work)

    @functools.cached_property
    def tokenizers(self) -> Tokenizers:
        return open_tokenizers(self.work)

    @property
    def samples(self) -> tuple[int, ...]:
        """See Drawn."""
        return (0,)

    @abc.abstractmethod
    def network(self) -> nnx.Module:
        """The model with its initial weights."""

    @abc.abstractmethod
    def example(self, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        """Example number n, flat; all its randomness comes from ``rng``."""

    def source(self) -> Drawn:
        return Drawn(
            self.example,
            seed=self.config.seed,
            fingerprint=self.pool.fingerprint,
            samples=self.samples,
        )


def open_network(work: Path, name: str) -> Any:
    """The model that a stage has trained.

    Raises:
        FileNotFoundError: the stage was never started.
        ValueError: it is not finished.
    """
    run = open_run(work / name, change=lambda config: config.update(work=str(work)))
    if run.step < run.config.steps:
        raise ValueError(
            f"{run.workdir}: {run.step} of {run.config.steps} steps are done; first finish it: "
            f"python -m persongen_jax.miniature --work {work} --only {name}"
        )
    return run.system.model


def to_pixels(images: jax.Array) -> jax.Array:
    """uint8 to float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1
