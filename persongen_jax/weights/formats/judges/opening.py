"""What opening any judge's file has in common."""

import os
from collections.abc import Callable

from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.source import TensorSource, closed_on_error
from persongen_jax.weights.recognition.layout import unwrapped


def open_named(
    path: str | os.PathLike,
    name_tensors: Callable[[TensorSource], TensorSource],
    infer_config: Callable[[TensorSource], dict],
) -> tuple[TensorSource, dict]:
    """(the tensors under our names, the network's arguments); closing the source closes the file.

    Raises:
        WeightsError: what ``name_tensors`` or ``infer_config`` refuses, or a fault of the file.
    """
    with closed_on_error(open_file(path)) as file:
        source = name_tensors(unwrapped(file))
        return source, infer_config(source)
