"""A small disk that can be full, and the warnings that are logged meanwhile."""

import contextlib
import logging
import os
import shutil
import subprocess

import pytest


class Words(logging.Handler):
    """Inside the ``with``, the package's warnings, a list of lines."""

    def __enter__(self):
        self.lines = []
        logging.getLogger("persongen_jax").addHandler(self)
        return self.lines

    def __exit__(self, *_):
        logging.getLogger("persongen_jax").removeHandler(self)

    def emit(self, record):
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def small_disk(folder, options):
    """A separate file system in memory, so that it can be full."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if not shutil.which("mount"):
        pytest.skip("there is no mount command, and so no small disk")
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Leave no byte; or no inode for a new file, where these are limited."""
    if os.statvfs(folder).f_files < 1000:
        with contextlib.suppress(OSError):
            for n in range(1000):
                (folder / f"ballast{n}").touch()
        return
    with open(folder / "ballast", "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def make_room(folder):
    for path in folder.glob("ballast*"):
        path.unlink()
