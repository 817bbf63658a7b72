"""What a benchmark says about the machine that it ran on."""

import os
import platform
from pathlib import Path

import jax


def processor() -> str:
    """The processor's name and how many cores this process may use, or the accelerator's name."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(named, "")
    return f"{len(os.sched_getaffinity(0))} cores of {name or platform.processor()}"
