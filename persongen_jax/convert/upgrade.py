"""Runs of earlier versions of persongen_jax, rewritten in place to today's names.

Version 1 called the thesis' branch ``ip_adapter`` and the published IP-Adapter ``ip_adapter_file``,
had keys of its own for Adam's betas, and let a learning rate fall until the last step.
"""

import json
from pathlib import Path

from data_pipeline.files import write_text
from data_pipeline.text_files import read_json
from persongen_jax.config import VERSION
from persongen_jax.evaluation.trajectories import read_rows, write_rows
from persongen_jax.training import integrity
from persongen_jax.weights.saver import write_json

METHODS = {"ip_adapter": "id_branch", "ip_adapter_file": "ip_adapter"}
ADAM = {"adam_b1": ("b1", 0.9), "adam_b2": ("b2", 0.999)}  # option and default by key
CONFIG = "config/metadata"  # where a checkpoint keeps its config, as JSON


def upgraded(saved: dict) -> dict:
    """A saved config with today's names; keys that did not exist then stay absent."""
    if saved.get("version", 1) >= VERSION:
        return saved
    now = {key: value for key, value in saved.items() if key not in ADAM}
    if "method" in now:
        now["method"] = METHODS.get(now["method"], now["method"])
    if now.get("lr_schedule", "constant") != "constant":
        now.setdefault("schedule_steps", now.get("steps", 0))
    if ADAM.keys() & saved.keys():
        options = {
            name: saved[key]
            for key, (name, default) in ADAM.items()
            if saved.get(key, default) != default
        }
        now |= {"optimizer": "adam", "optimizer_options": options}
    return {**now, "version": VERSION}


def upgrade_run(workdir: str | Path) -> list[str]:
    """Rewrite a run's configs, and the method's name in its results; a line for each file.

    Started again after it was interrupted, it finishes.

    Raises:
        FileNotFoundError: no run there.
    """
    workdir = Path(workdir)
    if not (workdir / "config.json").is_file():
        raise FileNotFoundError(f"{workdir}: no config.json there; give a run's working directory")
    lines = []
    for folder in sorted((workdir / "checkpoints").glob("[0-9]*")):
        lines += _upgrade_checkpoint(folder)
    results = [workdir / "validation/metrics.jsonl", *workdir.glob("evaluation/*/metrics.json")]
    if _version(workdir / "config.json") < VERSION:
        lines += [line for path in results if path.is_file() for line in _rename_in(path)]
        # Last, for it says that all of the above is done.
        write_json(workdir / "config.json", upgraded(read_json(workdir / "config.json")))
        lines.append(f"{workdir / 'config.json'}: rewritten")
    return lines


def _upgrade_checkpoint(folder: Path) -> list[str]:
    file = folder / CONFIG
    if not file.is_file() or not (folder / integrity.NAME).is_file():
        return [f"{folder}: not complete; left alone"]
    faults = [fault for fault in integrity.find_faults(folder) if fault.startswith(CONFIG)]
    old = _version(file) < VERSION
    if old and faults:
        return [f"{folder}: damaged ({faults[0]}); left alone"]
    if old:
        write_json(file, upgraded(read_json(file)))
    if old or faults:  # faults alone: it was interrupted between the two
        integrity.renew_digest(folder, CONFIG)
        return [f"{file}: rewritten"]
    return []


def _rename_in(path: Path) -> list[str]:
    """The method's name in the rows of a .json or .jsonl."""
    rows = read_rows(path)
    rows = [{**row, "method": METHODS.get(row["method"], row["method"])} for row in rows]
    if path.suffix == ".json":
        write_rows(path, rows)
    else:
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return [f"{path}: rewritten"]


def _version(path: Path) -> int:
    return read_json(path).get("version", 1)
