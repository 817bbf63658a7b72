"""TPU chips that need not be present: their specifications, and topologies to compile for."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        peak: dense bfloat16 FLOP/s (Google Cloud's data sheets).
        memory: bytes.
        clock: Hz, which converts the compiler's cycles to seconds.
        clock_known: False if the clock is not published and derived from the peak instead.
    """

    name: str
    peak: float
    memory: int
    clock: float
    clock_known: bool = True


# A product unit of n x n does 2 n^2 operations per cycle. The clocks of v5e (4 units of 128) and
# v5p (2 x 4 of 128) give their peaks exactly; for v6e the published peak is 4 units of 256 at 1.75
# GHz, but Google publishes neither the clock nor, consistently, the number of units.
CHIPS = {
    "v5e": Chip("v5e", 197e12, 16 * GIB, 1.5e9),
    "v5p": Chip("v5p", 459e12, 95 * GIB, 1.75e9),
    "v6e": Chip("v6e", 918e12, 32 * GIB, 1.75e9, clock_known=False),
}


def open_topology(name: str) -> tuple[Chip, Sequence[jax.Device]]:
    """(chip, devices) of a topology such as "v5e:4x4", "v5p:4x4x4" or "v6e:4x4".

    Programs can be compiled for these devices but not run on them.

    Raises:
        ImportError: libtpu, the compiler, is not installed.
        ValueError: an unknown chip or shape.
    """
    chip = CHIPS.get(name.partition(":")[0])
    if chip is None:
        raise ValueError(
            f"--topology {name}: the chip is not known; known: {', '.join(CHIPS)}, e.g. v5e:4x4"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            "libtpu, the TPU's compiler, is not installed: pip install 'persongen_jax[tpu-aot]' "
            "(it needs no TPU)"
        )
    # Skip the metadata server, and allow two compilations at once.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except RuntimeError as error:  # JAX's own, also for an impossible shape
        raise ValueError(
            f"--topology {name}: {str(error).splitlines()[0]}; v5e and v6e have two sides (4x4), "
            "v5p three (4x4x4)"
        ) from error
    return chip, topology.devices
