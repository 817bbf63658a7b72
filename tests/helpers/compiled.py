"""Compiled programs that one run of the tests leaves for the next."""

import hashlib
import os
import platform
from pathlib import Path

LIMIT = 1 << 30  # bytes; a whole run with --runslow leaves less than half of it


def folder() -> Path:
    """Where they are kept: outside of the checkout, so that another clone has them too.

    A program is for the processor that it was compiled on; JAX's own key says nothing of it.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "persongen_jax" / "tests" / _processor()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = sorted({line for line in lines if line.startswith(("flags", "Features"))})
    except OSError:
        name = [platform.processor(), platform.platform()]
    return hashlib.sha256("\n".join(name).encode()).hexdigest()[:12]


def remove_broken(folder: Path, since: float) -> int:
    """Remove entries, written after ``since``, that a killed process left half-written.

    JAX writes them in place and never writes one again that is there.
    """
    from jax._src.compilation_cache import decompress_executable

    removed = 0
    for path in folder.glob("*-cache"):
        if path.stat().st_mtime < since:
            continue
        try:
            decompress_executable(path.read_bytes())
        except Exception:  # zstandard's and zlib's errors have nothing in common
            path.unlink()
            removed += 1
    return removed


def remove_oldest(folder: Path, limit: int = LIMIT) -> int:
    """Remove what was read longest ago, until the rest fits into ``limit`` bytes."""
    found = [(path, path.stat()) for path in folder.glob("*-cache")]
    total, removed = sum(stat.st_size for _, stat in found), 0
    for path, stat in sorted(found, key=lambda one: max(one[1].st_atime, one[1].st_mtime)):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= stat.st_size
        removed += 1
    return removed


def tidy(folder: Path, since: float):
    """After a run that began at ``since``."""
    if folder.is_dir():
        remove_broken(folder, since - 2)  # file systems round their times
        remove_oldest(folder)
