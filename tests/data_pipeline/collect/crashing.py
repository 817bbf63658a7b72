"""Functions for worker processes: one item ends its process, another never ends."""

import os
import signal
import time


def double(numbers: list[int]) -> list[int]:
    """Twice each; 13 is fatal, 99 takes forever, 28 fills the disk, and a negative number is an
    error."""
    for number in numbers:
        if number == 13:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 99:
            time.sleep(600)
        if number == 28:
            raise OSError(28, "no space")
        if number < 0:
            raise ValueError(f"{number} is negative")
    return [2 * number for number in numbers]


def failed(number: int, why: str) -> str:
    return f"{number}: {why}"


class CannotStart:
    """A function that no other process can open."""

    def __call__(self, numbers: list[int]) -> list[int]:
        return numbers

    def __reduce__(self):
        return _fail, ()


def _fail() -> None:
    raise RuntimeError("there is no such network")


class _FatalWhite:
    error = "none: 0 for every picture but a white one, which ends its process"

    def __call__(self, image, faces) -> float:
        if image.min() == 255:
            os.kill(os.getpid(), signal.SIGSEGV)
        return 0.0


fatal_white = _FatalWhite()


class _Broken:
    error = "none: it raises for every picture"

    def __call__(self, image, faces) -> float:
        raise RuntimeError("the GPU is gone")


broken = _Broken()
