"""Published weights side by side on a benchmark, without a training run.

Every weight file generates the same people and prompts from the same noise, and the same judges
measure them. The output folder has the joint tables and a sheet of each set; NAME/ has one file's
figures, sheets, images with a metadata.jsonl for each set, and references/, what it read. A
file whose figures are there, by the same settings and of the same inputs, is not generated again.
"""

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from data_pipeline.files import write_text
from data_pipeline.records.sources import file_stamps, open_records
from data_pipeline.text_files import parse_json, read_json, whole_lines
from persongen_jax.evaluation.benchmarks import BENCHMARKS, NUMBER_OF_SETS
from persongen_jax.evaluation.comparison import (
    check_comparable,
    join_groups,
    rows_of_groups,
    table,
    write_tables,
)
from persongen_jax.evaluation.contact_sheet import Row, choose_rows, contact_sheet
from persongen_jax.evaluation.groups.by_group import write_groups
from persongen_jax.evaluation.of_run import put_options
from persongen_jax.evaluation.people import Evaluation, Result
from persongen_jax.evaluation.trajectories import SETS, read_rows, write_rows
from persongen_jax.evaluation.validation import write_image_file
from persongen_jax.methods import METHODS
from persongen_jax.parallel import distributed
from persongen_jax.pipeline.loading import config_of_file, find_weights
from persongen_jax.pipeline.saving import ImageWriter
from persongen_jax.systems.open import open_system
from persongen_jax.systems.sdxl_config import sdxl_defaults
from persongen_jax.weights.formats.identity.instantid import is_instantid
from persongen_jax.weights.saver import write_json

IMAGES, REFERENCES, METADATA = "images", "references", "metadata.jsonl"
FIGURES, SETTINGS = "metrics.json", "settings.json"
# Keys of the config that name files or folders.
PATHS = (
    *(
        "base",
        "id_encoder",
        "face_encoder",
        "clip",
        "dino",
        "dinov2",
        "inception",
        "lpips",
        "cmmd_clip",
    ),
    *("face_net", "face_detector", "pose_net", "validation_prompts"),
)
NEW, MEASURED, FOREIGN = range(3)
ELSEWHERE = SETS[-1]  # released weights have seen nobody of a folder that does not say more


def parse_weights(items: Sequence[str]) -> dict[str, Path]:
    """Files by name from NAME=FILE.

    Raises:
        ValueError: no name, a name twice or one that no folder can have.
        FileNotFoundError: no such file.
    """
    found = {}
    for item in items:
        name, given, file = item.partition("=")
        if not given or not name or not file:
            raise ValueError(f"--weights {item}: give NAME=FILE")
        if name in found or Path(name).name != name or name.startswith("."):
            raise ValueError(f"--weights {item}: the name is taken, or none for a folder")
        path = Path(find_weights(file))
        if path.is_dir():
            raise ValueError(
                f"--weights {item}: is a folder; a training run is evaluated with --run, and "
                "--compare puts it beside these"
            )
        if not path.is_file():
            raise FileNotFoundError(f"--weights {item}: no such file")
        found[name] = path
    return found


def evaluate_weights(args: argparse.Namespace) -> list[dict]:
    """Generate, measure, write; print the table and return its rows (comparison.write_tables).

    With several processes all of them generate, and the first one writes and returns.

    Args:
        args: the command's: weights, base, benchmark, people, dtype, out, no_mark, and OPTIONS of
            of_run.py.

    Raises:
        ValueError: no base, benchmark or people; a file of another method than its name says.
        WeightsError: a file that is damaged or does not fit the base.
    """
    if not args.base or not args.benchmark:
        raise ValueError(f"--weights: give --base DIR and --benchmark {'|'.join(BENCHMARKS)}")
    weights, out = parse_weights(args.weights), args.out or Path("evaluation") / args.benchmark
    configs = {name: config_of(name, file, args) for name, file in weights.items()}
    groups = {
        name: [measured(out / name, weights[name], config, mark=not args.no_mark)]
        for name, config in configs.items()
    }
    if not distributed.is_first():
        return []
    rows = next(iter(groups.values()))[0]
    check_comparable(groups)
    entries = join_groups(groups)
    lines = differences(args.benchmark, next(iter(configs.values())), rows)
    lines += filter(None, [write_groups(rows_of_groups(groups), out)])
    joint = write_tables(entries, out, "\n\n".join(lines))
    for name in SETS:
        (out / f"sheet_{name}.png").unlink(missing_ok=True)  # perhaps no longer asked for
    write_sheets(out, list(groups), list(dict.fromkeys(name for _, name, *_ in entries)))
    print("\n\n".join([table(entries), *lines]))
    print(f"written: {out}")
    return joint


def differences(benchmark: str, config: ConfigDict, rows: Sequence[dict]) -> list[str]:
    """Sentences on what was not as the benchmark has it: options, people, sets."""
    own = BENCHMARKS[benchmark]
    changed = [
        f"{key.removeprefix('validation_')} {config[key]} for {value}"
        for key, value in own.items()
        if config[key] != value
    ]
    lines = [f"Not as in the benchmark: {', '.join(changed)}."] if changed else []
    few = [row for row in rows if row["people"] < own["validation_people"]]
    counts = [f"{row['people']} on {row['set'].replace('_', '-')}" for row in few]
    if counts:
        lines.append(f"Of the benchmark's {own['validation_people']} people: {', '.join(counts)}.")
    sets = NUMBER_OF_SETS.get(benchmark, 1)
    if len(rows) < sets:
        lines.append(f"Of the benchmark's {sets} sets: {len(rows)}.")
    return lines


def config_of(name: str, file: Path, args: argparse.Namespace) -> ConfigDict:
    """The whole config of one weight file's evaluation."""
    if is_instantid(file) or name == "instantid":
        raise ValueError(
            f"{file}: InstantID needs its IdentityNet and places of faces, which the benchmark "
            "does not give; make its images with persongen_jax.generate, and score them as a folder"
        )
    config = sdxl_defaults()
    config.base = str(args.base)
    on_cpu = jax.default_backend() == "cpu"
    config.dtype = args.dtype or ("float32" if on_cpu else "bfloat16")
    config.steps = config.validation_every = 0
    config.update(BENCHMARKS[args.benchmark])
    named = name if name in METHODS else None
    of_file = config_of_file(file, named, args.base)
    if args.people:
        config.update(sets_of(args.people))
    put_options(config, args)
    for key in ("id_encoder", "face_encoder"):
        if key in of_file and not of_file[key]:  # the file has no such network of its own
            of_file[key] = config[key]
    config.update(of_file)
    config.start_from = str(file)
    if not any(config[f"validate_{each}"] for each in SETS):
        raise ValueError("--weights: nobody to generate; give --people FOLDER")
    return config


def sets_of(people: str) -> dict[str, str]:
    """The sources of ``people`` by the config's key: of a folder with the sets, or of one."""
    folder = Path(people)
    found = [name for name in SETS if (folder / name).is_dir()]
    if found:
        others = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in SETS)
        if others:
            raise ValueError(
                f"--people {people}: has {', '.join(found)} and also {', '.join(others)}; leave "
                f"only folders named {', '.join(SETS)}, or only people's"
            )
        return {f"validate_{name}": str(folder / name) for name in found}
    split = people.removeprefix("people:").partition("?")[0]
    return {f"validate_{split if split in SETS else ELSEWHERE}": people}


def measured(out: Path, file: Path, config: ConfigDict, *, mark: bool) -> list[dict]:
    """The rows of one weight file, from its folder or newly generated; [] but on the first process.

    Raises:
        ValueError: the folder has files that this command did not write.
    """
    settings = settings_of(file, config, mark)
    found = distributed.broadcast_from_first(state_of(out, settings))
    if found == FOREIGN:
        raise ValueError(f"{out}: has files of something else; give another --out")
    if found == MEASURED:
        print(f"{out.name}: measured before, in {out}")
        return read_rows(out / FIGURES) if distributed.is_first() else []
    start = time.perf_counter()
    system: Any = open_system(config)
    evaluation = Evaluation(system)
    check_names(evaluation)
    results = evaluation(system.model, 0)
    if not distributed.is_first():
        return []
    shutil.rmtree(out, ignore_errors=True)  # perhaps of more people, or of other ones
    out.mkdir(parents=True)
    write_json(out / SETTINGS, settings)
    for set_name, result in results.items():
        write_image_file(out / f"{set_name}.png", evaluation.sheet(set_name, result.images))
    write_references(out / REFERENCES, evaluation)
    write_images(out / IMAGES, evaluation, results, mark)
    minutes = (time.perf_counter() - start) / 60
    rows = [{**result.row, "method": out.name, "minutes": minutes} for result in results.values()]
    write_rows(out / FIGURES, rows)
    return rows


def state_of(out: Path, settings: dict) -> int:
    """Of a weight file's folder: NEW, MEASURED by these settings, or FOREIGN.

    One that was measured otherwise, or not to its end, is NEW.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return NEW
    if not (out / SETTINGS).exists():
        return FOREIGN
    return MEASURED if (out / FIGURES).exists() and read_json(out / SETTINGS) == settings else NEW


def settings_of(file: Path, config: ConfigDict, mark: bool) -> dict[str, Any]:
    """What the figures and images depend on, as JSON gives it back.

    Weights by their content; other files and photographs by path, size and time of change.
    """
    found = {"weights": digest(file), "mark": mark, **json.loads(config.to_json())}
    found["files"] = {key: stamps(config[key]) for key in PATHS if config.get(key)}
    people = {}
    for name in (*(f"validate_{each}" for each in SETS), "validation_gallery"):
        if spec := config[name]:
            records, _ = open_records(spec, config.trigger_word, marked=False, least=1)
            stamp = file_stamps(spec)
            shown = [[str(record), stamp(record.image)] for record in records]
            people[name] = hashlib.sha256(json.dumps(shown).encode()).hexdigest()
    return {**found, "people": people}


def stamps(path: str) -> list[list]:
    """[[name, bytes, time of change], …] of a file, or of all files in a folder.

    Args:
        path: perhaps after a kind, as in keypoints:DIR.
    """
    top = Path(path.rpartition(":")[2])
    files = sorted(top.rglob("*")) if top.is_dir() else [top]
    told = [(str(file), file.stat()) for file in files if file.is_file()]
    return [[name, found.st_size, found.st_mtime_ns] for name, found in told]


def check_names(evaluation: Evaluation) -> None:
    """ValueError if two people would get one folder."""
    for people in evaluation.people.values():
        names = [folder_name(person.identity) for person in people]
        for i, name in enumerate(names):
            if name in names[:i]:
                other = people[names.index(name)].identity
                raise ValueError(
                    f"{people[i].identity!r} and {other!r} would both be the folder {name}: "
                    "rename one of them"
                )


def digest(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_images(
    folder: Path, evaluation: Evaluation, results: dict[str, Result], mark: bool
) -> None:
    """Every image as SET/PERSON_PROMPT_IMAGE.png, and SET/metadata.jsonl with a line for each.

    A line: {"file_name", "person", "prompt", "seed"}. The seed is the number of the image: equal
    ones started from the same noise.
    """
    write = ImageWriter(mark)
    for set_name, result in results.items():
        lines = []
        for i, person in enumerate(evaluation.people[set_name]):
            for j, prompt in enumerate(evaluation.prompts):
                text = prompt.fill(person.word).whole(evaluation.config.trigger_word)
                for k, image in enumerate(result.images[i, j]):
                    name = image_name(i, j, k)
                    write(image, folder / set_name / name)
                    line = {"file_name": name, "person": folder_name(person.identity)}
                    lines.append({**line, "prompt": text, "seed": k})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_text(folder / set_name / METADATA, text)


def write_references(folder: Path, evaluation: Evaluation) -> None:
    """SET/PERSON/NUMBER.png: the crops that methods read."""
    for set_name, people in evaluation.people.items():
        for person in people:
            own = folder / set_name / folder_name(person.identity)
            own.mkdir(parents=True, exist_ok=True)
            for number, crop in enumerate(person.crops):
                write_image_file(own / f"{number}.png", crop)


def image_name(person: int, prompt: int, image: int) -> str:
    return f"{person:03d}_{prompt:02d}_{image:02d}.png"


def folder_name(identity: str) -> str:
    """A person's name as that of a folder."""
    return identity.replace("/", "_").lstrip(".") or "_"


def write_sheets(out: Path, names: Sequence[str], sets: Sequence[str]) -> None:
    """sheet_SET.png: a row per person and prompt, the first image of every weight file."""
    for set_name in sets:
        folder = out / names[0] / IMAGES / set_name
        lines = [parse_json(text, folder) for text in whole_lines(folder / METADATA)]
        by_file = {line["file_name"]: line for line in lines}
        people = len({line["person"] for line in lines})
        prompts = sum(image_name(0, j, 0) in by_file for j in range(len(lines)))
        rows = []
        for i, j in choose_rows(people, prompts):
            line = by_file[image_name(i, j, 0)]
            places = [out / name / IMAGES / set_name / line["file_name"] for name in names]
            own = out / names[0] / REFERENCES / set_name / line["person"]
            label = f"{line['person']} / {line['prompt']}"
            images = [read_image(place) for place in places]
            rows.append(Row(label, read_image(own / "0.png"), images))
        sheet = contact_sheet(rows, ["reference", *names])
        write_image_file(out / f"sheet_{set_name}.png", sheet)


def read_image(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
