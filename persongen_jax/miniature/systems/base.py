"""What the miniature's systems share: the pool, examples drawn from it, and other stages' runs.

``config.work`` is a folder with the pool, arrays derived from it, and a run's folder per stage,
named like the stage.
"""

import abc
import functools
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

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

    def __init__(self, make: Callable, *, seed: int, fingerprint: str, samples=(0,)):
        self._make, self.seed, self.fingerprint = make, seed, fingerprint
        self.specs = [spec_of(self.example(n)) for n in samples]

    def example(self, n: int) -> dict[str, np.ndarray]:
        return self._make(np.random.default_rng((self.seed, n)), n)


class PoolSystem(System):
    """A network that is trained on the pool.

    Attributes:
        samples: see Drawn.
    """

    samples: tuple[int, ...] = (0,)

    def __init__(self, config):
        self.config = config
        self.model = self.network()

    @classmethod
    def defaults(cls):
        config = super().defaults()
        config.work = "runs/miniature"  # the folder with the pool and the runs
        config.lr_model = 1e-3
        return config

    @classmethod
    def abstract(cls, config):
        system = cls(config)  # small enough to open
        system.model = nnx.eval_shape(lambda: nnx.clone(system.model))
        return system

    @property
    def label(self):
        return type(self).__name__

    @property
    def work(self) -> Path:
        return Path(self.config.work)

    @functools.cached_property
    def pool(self) -> Pool:
        return open_pool(self.work)

    @functools.cached_property
    def tokenizers(self):
        return open_tokenizers(self.work)

    @abc.abstractmethod
    def network(self):
        """The model with its initial weights."""

    @abc.abstractmethod
    def example(self, rng, n: int) -> dict[str, np.ndarray]:
        """Example number n, flat; all its randomness comes from ``rng``."""

    def source(self) -> Drawn:
        return Drawn(
            self.example,
            seed=self.config.seed,
            fingerprint=self.pool.fingerprint,
            samples=self.samples,
        )


def open_network(work: Path, name: str):
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


def to_pixels(images):
    """uint8 to float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1
