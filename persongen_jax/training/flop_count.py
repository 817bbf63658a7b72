"""Floating-point operations of a traced function, and the peak rate of the devices.

Their quotient is the model FLOPs utilisation (MFU; PaLM, arXiv 2204.02311, appendix B).
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from persongen_jax.models.platform import attention_by, target_platform

# Dense bfloat16 FLOP/s by the beginning of the device's name; the longest match counts.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5": 459e12,
    "TPU v5e": 197e12,
    "TPU v5 lite": 197e12,
    "TPU v6e": 918e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
}


def of_function(function: jax.stages.Wrapped, *arguments: Any) -> int:
    """FLOPs of a jitted function, see :func:`count`, including attention's two products.

    A kernel hides its products, so the function is traced a second time with attention by XLA. On a
    CPU it uses XLA already, and JAX has cached the trace.
    """
    with attention_by("auto" if target_platform() == "cpu" else "xla"):
        return count(function.trace(*arguments).jaxpr.jaxpr)


def count(jaxpr: Any) -> int:
    """FLOPs of a jaxpr's products and convolutions, 2 per multiply-add, inner jaxprs included.

    Products inside a kernel are not seen: use :func:`of_function` where there may be one. A scan
    counts once per iteration, which XLA's own ``cost_analysis`` does not do; the body of a while
    loop counts once. What ``jax.checkpoint`` recomputes counts again.
    """
    total = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        out = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * out * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
            total += 2 * out * math.prod(kernel) // kernel[out_axis]
        else:
            repeats = eqn.params.get("length", 1) if name == "scan" else 1
            total += repeats * sum(count(inner) for inner in _inner(eqn.params))
    return total


def _inner(params):
    for value in params.values():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if hasattr(item, "jaxpr"):
                yield item.jaxpr
            elif hasattr(item, "eqns"):
                yield item


def peak_flops(devices: Sequence[jax.Device]) -> tuple[float, str]:
    """(FLOP/s of all ``devices`` together, where the figure comes from).

    If ``PEAK_FLOPS`` does not list the device, one of them is measured.
    """
    kind = devices[0].device_kind
    known = [name for name in PEAK_FLOPS if kind.startswith(name)]
    if known:
        return len(devices) * PEAK_FLOPS[max(known, key=len)], f"data sheet of {kind}, bfloat16"
    # JAX's CPU devices are shares of one machine, and a single product uses all its cores.
    machines = len({device.process_index for device in devices})
    count = machines if devices[0].platform == "cpu" else len(devices)
    measured = measured_flops(jax.local_devices()[0])
    return count * measured, "measured, a float32 matrix product"


def measured_flops(device: jax.Device, side: int = 1024, tries: int = 5) -> float:
    """FLOP/s of the fastest of a few float32 products of ``side`` x ``side`` matrices."""
    matrix = jax.device_put(jnp.ones((side, side), jnp.float32), device)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)
