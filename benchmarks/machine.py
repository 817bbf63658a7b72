"""What a benchmark says about the machine that it ran on."""

import os
import platform
from pathlib import Path


def processor() -> str:
    """The processor's name and how many cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(named, "")
    return f"{len(os.sched_getaffinity(0))} cores of {name or platform.processor()}"
