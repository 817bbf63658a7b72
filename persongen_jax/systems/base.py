"""The System interface: a model, its trained weights, its examples, and its losses.

The loop (train.py), the step (training/step.py), checkpoints, logs, ``aot``, ``bench`` and
``study`` know only this class. systems/diffusion.py has what all diffusion models share.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.batches import BatchStream, Source, open_loader
from data_pipeline.examples.fields import Batch, Field, unflatten
from persongen_jax.config import run_defaults


@dataclasses.dataclass
class SamplingProgram:
    """A jitted function (*static, weights, *inputs), not yet compiled.

    Attributes:
        weights: ShapeDtypeStructs of the networks that run.
        inputs: ShapeDtypeStructs [b, ...] of what depends on the image, and plain numbers.
        unknown_steps: the number of iterations of its loop, if the compiler cannot know it; else 1.
    """

    function: jax.stages.Wrapped
    static: tuple
    weights: Any
    inputs: tuple
    unknown_steps: int = 1


class System(abc.ABC):
    """What is trained. A subclass sets the attributes in ``__init__`` and implements the methods.

    Attributes:
        config: the experiment's config.
        model: an nnx.Module with all networks, trained and frozen.
        groups: rows (path pattern, learning-rate group) of what is trained; each group's rate is
            ``config.lr_<group>``. ``config.trainable`` may say otherwise. See
            training/partition.py.
        fields: of an example, where it is made of such (data_pipeline/examples/fields.py).
        statistics: whether a step also moves what the model's own layers gather (running means of
            batch norms), which no gradient moves.
        evaluation: "package.module:Class" of what measures the model in a validation, called with
            the system (persongen_jax/evaluation/validation.py says what it has to do); "": nothing.
        prepares: "package.module:Function" of what makes missing data, called with the system
            before the first step; returns lines for the log. "": nothing.
    """

    config: ConfigDict
    model: nnx.Module
    groups: tuple[tuple[str, str], ...] = ((".*", "model"),)
    fields: tuple[Field, ...] = ()
    statistics: bool = False
    evaluation: str = ""
    prepares: str = ""

    def __init__(self, config: ConfigDict):
        self.config = config

    @classmethod
    def defaults(cls) -> ConfigDict:
        """Every key of the system's configs, with its default."""
        return run_defaults()

    @classmethod
    def open(
        cls, config: ConfigDict, shardings: Callable | jax.sharding.Sharding | None = None
    ) -> Self:
        """The system of a config with its initial weights.

        Args:
            shardings: where loaded weights are placed; see sharding.load_shardings.
        """
        return cls(config)

    @classmethod
    def abstract(cls, config: ConfigDict) -> Self:
        """The same with a ShapeDtypeStruct for every array; opens no file and allocates nothing."""
        made = []

        def make():
            made.append(cls(config))
            return made[0].model

        model = nnx.eval_shape(make)
        made[0].model = model
        return made[0]

    @classmethod
    def check_data(cls, config: ConfigDict) -> list[str]:
        """Lines on the data that the config names, before anything else is loaded.

        Raises:
            ValueError: faults that would end the training; all of them at once.
        """
        return []

    @classmethod
    def resolve_config(cls, config: ConfigDict) -> ConfigDict:
        """The config of a new run, with the values that it derives from its data filled in.

        Later the run is opened with it, when the data may have changed or be gone.
        """
        return config

    @property
    def table(self) -> tuple:
        """The rows (path pattern, group) that apply to this run."""
        return self.config.trainable or self.groups

    @property
    def label(self) -> str:
        """The name of a run in plots and tables."""
        return self.config.system.rpartition(":")[2].lower()

    @property
    def unused_keys(self) -> tuple[str, ...]:
        """The keys for some of the system's methods that this one ignores."""
        return ()

    def __str__(self) -> str:
        return self.label

    # ---- examples ----

    @abc.abstractmethod
    def source(self) -> Source:
        """Examples by index; see data_pipeline.examples.batches.Source."""

    def examples(self, start_step: int, alone: bool = False) -> BatchStream:
        """Host batches from ``start_step`` on: this process' rows of each; ``alone``: all rows."""
        return open_loader(self.config.loader)(
            self.source(),
            batch_size=self.config.batch_size,
            start_step=start_step,
            process_index=0 if alone else jax.process_index(),
            process_count=1 if alone else jax.process_count(),
        )

    def abstract_batch(self, cached: bool = False) -> Batch:
        """A batch over all devices as ShapeDtypeStructs [batch_size, ...].

        Args:
            cached: with the feature cache's outputs instead of the inputs of frozen networks.
        """
        b = self.config.batch_size
        specs = self.source().specs[0]
        return unflatten({n: jax.ShapeDtypeStruct((b, *s), d) for n, (s, d) in specs.items()})

    def random_batch(self, cached: bool = False) -> Batch:
        """A batch for speed measurements: the right shapes, with plausible values."""
        del cached
        return next(iter(self.examples(0, alone=True)))

    # ---- a step ----

    def check_objective(self) -> None:  # noqa: B027 (nothing to find)
        """ValueError for settings of the losses that do not go together; called when opened."""

    def draw(self, key_of: Callable[[int], jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """All random numbers of a step, arrays [b, ...] for the whole batch, however it is split.

        Args:
            key_of: maps purpose (a small int) to a random key, a function of (seed, step, purpose).
        """
        return {}

    @abc.abstractmethod
    def losses(self, model: Any, batch: Batch, draws: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """{"loss": [b], …}: one number per example; all but "loss" are logged as means.

        Runs inside the compiled step, with the current model.
        """

    def update_rules(self) -> dict[str, optax.GradientTransformation]:
        """What follows the optimizer's update of a learning-rate group, by the group's name."""
        return {}

    def cached_kinds(self) -> list[str]:
        """The outputs that the feature cache can keep under this config's table."""
        return []

    def unread(self, cached: bool = False) -> tuple[str, ...]:
        """Path prefixes of frozen weights that a step does not read (training/offload.py)."""
        return ()

    # ---- evaluation ----

    def sampling_program(self, steps: int) -> "SamplingProgram":
        """The program that generates ``config.batch_size`` images in ``steps`` steps (aot)."""
        raise ValueError(f"{self.label} generates no images; leave out --what sample")

    @classmethod
    def validation_sets_of(cls, config: ConfigDict) -> tuple[str, ...]:
        """Names of the sets that a validation measures on, in the order of tables; () for none."""
        return ()

    @property
    def validation_sets(self) -> tuple[str, ...]:
        return self.validation_sets_of(self.config)

    @property
    def trained_against(self) -> tuple[str, ...]:
        """Path prefixes of networks that are an input or part of a loss: none of them may judge the
        results (metrics/judge_check.py)."""
        return ()


def spec_of(arrays: dict) -> dict:
    """Flat name to (shape, dtype) of one example's arrays."""
    return {name: (np.shape(array), np.asarray(array).dtype) for name, array in arrays.items()}
