"""The interface of a loss on decoded images."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch, Field
from data_pipeline.records.schema import Record


class Settings(NamedTuple):
    """How a loss enters the objective.

    Attributes:
        weight: its factor.
        noise_from, noise_to: the noise levels at which it counts, both inclusive: the noise's
            standard deviation sqrt(1 - alphas_cumprod), 0 to 1.
    """

    weight: float
    noise_from: float = 0.0
    noise_to: float = 0.5


class Decoded(NamedTuple):
    """What a loss judges.

    Attributes:
        images: [b, h, w, 3] float32 in 0..1, the decoded x̂₀; differentiable.
        size: (height, width) of the target in pixels; the images may be smaller.
        target: gives the target's images, like ``images``; no gradient flows to them.
        batch: the example's fields, in pixels of the target.
    """

    images: jax.Array
    size: tuple[int, int]
    target: Callable[[], jax.Array]
    batch: Batch


class DecodedLoss(abc.ABC):
    """One loss, with the frozen network that it needs, if any.

    Attributes:
        name: in ``config.losses`` and in the log.
        net_key: the config's key that names its network; "" for none.
        needs: what ``comparable`` asks of a record, in words.
        reads_target: whether it reads the target's image.
        reads_condition: whether it compares with what the prompt or the references say, so that it
            does not act where training has dropped these.

    Args:
        config: names the network.
        abstract: only shapes are made: files may be missing, and no terms are said.
    """

    name: str
    net_key: str = ""
    needs: str = ""
    reads_target: bool = False
    reads_condition: bool = False

    def __init__(self, config: ConfigDict, *, abstract: bool = False):
        self.abstract = abstract
        self.net: str = config[self.net_key] if self.net_key else ""
        if self.net_key and not self.net:
            said = f"config.{self.net_key} is empty"
            raise ValueError(f"{said}: the loss {self.name!r} {self.remedy}")

    remedy = "needs it"

    def network(self) -> nnx.Module | None:
        """The frozen network; if ``abstract``, a missing file's shapes are the published ones."""
        return None

    def fields(self, trigger_word: str) -> tuple[Field, ...]:
        """What it reads of an example in addition to the target."""
        return ()

    def comparable(self, record: Record) -> bool:
        """Whether the record has what is compared; a crop may still leave it out."""
        return True

    @abc.abstractmethod
    def __call__(self, network: Any, decoded: Decoded) -> tuple[jax.Array, jax.Array]:
        """(values [b] float32, whether each can be compared [b] bool)."""


def check_records(losses: Sequence[DecodedLoss], records: Sequence[Record], data: str) -> list[str]:
    """Lines on records that losses cannot compare.

    Raises:
        ValueError: a loss that can compare none of them.
    """
    lines = []
    for loss in losses:
        without = sum(not loss.comparable(record) for record in records)
        if without and without == len(records):
            raise ValueError(
                f"config.losses: {loss.name} compares {loss.needs}, and no record of {data} has "
                "them; let data_pipeline.manifest find them (--pose for keypoints), or leave the "
                "loss out"
            )
        if without:
            lines.append(
                f"{loss.name} does not act on {without} of {len(records)}: no {loss.needs}"
            )
    return lines
