"""One row of the bench in a separate process, so that running out of memory harms no other row.

    python -m persongen_jax.bench.worker TASK

TASK is JSON, see :func:`make_row`, :func:`count_work` and :func:`look`. The answers are lines of
JSON on standard output: the result of ``prepare``; for each number read from standard input the
result of ``run`` with that many steps; at the end of input that of ``finish``. An error is
{"error": ...}, and ends the process. All other output goes to standard error.
"""

import json
import os
import sys
import traceback
from typing import Any

from ml_collections import ConfigDict

OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "OutOfMemoryError", "bad_alloc")


def make_row(task: dict) -> Any:
    """An object with ``prepare``, ``run`` and ``finish``.

    Args:
        task: {"what": "train" or "sample", "by": "ours" or "torch", "config": file, "overrides":
            {key of the config: value}, "options": arguments of the row's class}.
    """
    from persongen_jax.bench.settings import read_config

    config = read_config(task["config"], task["overrides"])
    if task["by"] == "ours":
        if task["what"] == "train":
            from persongen_jax.bench.training import TrainRow

            return TrainRow(config, **task["options"])
        from persongen_jax.bench.sampling import SampleRow

        return SampleRow(config, **task["options"])
    if task["what"] == "train":
        from benchmarks.torch_rows import TorchTrainRow

        return TorchTrainRow(config, **task["options"])
    from benchmarks.torch_rows import TorchSampleRow

    return TorchSampleRow(config, **task["options"])


def count_work(task: dict) -> dict:
    """{"ours", "torch": floating-point operations per picture, "trained", "trained_torch"}.

    If torch's cannot be counted, there is "torch_error" instead, and ours all the same.
    """
    from persongen_jax.bench.settings import read_config

    config = read_config(task["config"], task["overrides"])
    counts = count_ours(config, task)
    if task["torch"]:
        try:
            counts |= count_torch(config, task)
        except Exception as error:
            traceback.print_exc()
            counts["torch_error"] = short_message(error)
    return counts


def count_ours(config: ConfigDict, task: dict) -> dict:
    if task["what"] == "train":
        from persongen_jax.bench.training import step_flops

        return dict(zip(("ours", "trained"), step_flops(config, **task["options"]), strict=True))
    from persongen_jax.bench.sampling import image_flops

    return {"ours": image_flops(config, **task["options"])}


def count_torch(config: ConfigDict, task: dict) -> dict:
    if task["what"] == "train":
        from benchmarks.torch_rows import torch_step_flops

        return dict(zip(("torch", "trained_torch"), torch_step_flops(config), strict=True))
    from benchmarks.torch_rows import torch_image_flops

    return {"torch": torch_image_flops(config, **task["options"])}


def query_devices() -> dict:
    """The devices that our code runs on."""
    import jax

    return {"platform": jax.default_backend(), "devices": jax.device_count()}


def short_message(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    if any(sign in text for sign in OUT_OF_MEMORY):
        return "out of memory"
    return text.split("\n")[0][:300]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(what: dict):
        print(json.dumps(what), file=answers, flush=True)

    task = json.loads(sys.argv[1])
    try:
        if task["by"] in ("count", "look"):
            answer(count_work(task) if task["by"] == "count" else query_devices())
            return
        row = make_row(task)
        answer(row.prepare())
        for line in sys.stdin:
            answer(row.run(int(line)))
        answer(row.finish())
    except Exception as error:
        traceback.print_exc()
        answer({"error": short_message(error)})


if __name__ == "__main__":
    main()
