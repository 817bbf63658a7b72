"""What a device has and can do: memory in use, and the rate of a large matrix product."""

import math
import resource
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from persongen_jax.training.flop_count import PEAK_FLOPS, peak_flops

GIB = 2**30


def program_memory(program: Any) -> dict:
    """GiB per device that a compiled program needs, by kind, as planned by the compiler."""
    stats = program.memory_analysis()
    if stats is None:
        return {}
    return {
        "arguments": stats.argument_size_in_bytes / GIB,
        "outputs": (stats.output_size_in_bytes - stats.alias_size_in_bytes) / GIB,
        "temporaries": stats.temp_size_in_bytes / GIB,
    }


def device_memory() -> dict:
    """Peak memory so far: GiB of one device, or of the host if the device has no memory."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return {"peak_gib": stats["peak_bytes_in_use"] / GIB}
    return {"peak_gib": host_peak()}


def final_figures() -> dict:
    """Figures available only at the end of a row: its memory, and on a CPU the rate of a product.

    At the start, other processes count the work on the same cores.
    """
    return device_memory() | (describe_device() if jax.default_backend() == "cpu" else {})


def host_peak() -> float:
    """Peak host memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def describe_device() -> dict:
    """Names, and floating-point operations per second: the peak, and of a matrix product."""
    devices = jax.devices()
    reached = matrix_product_rate()
    if devices[0].device_kind.startswith(tuple(PEAK_FLOPS)):
        peak, origin = peak_flops(devices)
    else:
        shares = 1 if devices[0].platform == "cpu" else len(devices)
        peak, origin = shares * reached, "measured, a matrix product"
    return {
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "platform": jax.default_backend(),
        "peak_flops": peak,
        "peak_origin": origin,
        "matrix_product_flops": reached,
    }


def matrix_product_rate(tries: int = 5) -> float:
    """FLOP/s of a large product on one device: the most that such work can reach there.

    bfloat16 on accelerators, float32 on a CPU; random numbers, because zeros run faster.
    """
    on_cpu = jax.default_backend() == "cpu"
    side, dtype = (2048, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
    product = jax.jit(jnp.matmul)
    product(a, b).block_until_ready()
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        product(a, b).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(times)


def check_finite(value: float) -> None:
    """FloatingPointError unless it is finite, as the measurement would be worthless."""
    if not math.isfinite(value):
        raise FloatingPointError(f"the result is {value}; this setting is not measured")
