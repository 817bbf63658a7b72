"""Training on one person in the miniature: DreamBooth-LoRA and Textual Inversion, with their cost.

    python -m benchmarks.training.personal --work runs/personal \\
        --out benchmarks/results/personal.md

trains `configs/mini/lora.py` and `configs/mini/textual_inversion.py` on six pictures of each of
twenty strangers, and LoRA with class images for the first ten of them, and generates forty images
of each by prompts that no picture had. Class images are drawn people of the training split:
with those that the miniature's base generates, faces are unlearned. The adapter that ships, which
is trained on nobody of these, reads one of the six pictures. All are judged by networks that no
method reads. What is complete is not repeated: the command can be stopped. Options that it does not
know are passed on to all trainings.

    python -m benchmarks.training.personal --work runs/personal --time

measures what the steps of one training take, which the table then shows: with nothing beside it.
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from benchmarks.machine import processor
from benchmarks.training.over_seeds import done
from benchmarks.training.seeds import run_training
from data_pipeline.cli import command
from data_pipeline.files import write_text
from data_pipeline.pictures.transforms import square_face_crop
from data_pipeline.prompts import join_parts, without_trigger
from data_pipeline.records.sources import open_records
from persongen_jax.evaluation.prompts import open_prompts
from persongen_jax.evaluation.trajectories import read_rows
from persongen_jax.metrics.clip_score import ClipScore
from persongen_jax.metrics.face_embedder import open_face_embedder
from persongen_jax.metrics.measures import measure
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.tables import cell, markdown
from persongen_jax.weights.saver import write_json

JUDGES = ASSETS / "judges"
PEOPLE, PICTURES, AMONG = 20, 6, 10
FIRST = 10  # the strangers before it served to choose the settings
# Images per prompt, and how. More guidance exaggerates what was learned of a person: at 4, faces of
# those who have much hair, a beard or dark skin drown in it.
EACH, SIZE, STEPS, GUIDANCE, SEED = 10, 64, 20, 2.0, 42
PROMPTS = "configs/mini/prompts.json"
CLASS_DATA = "people:in_train?framing=portrait&pictures=2&identities=600"
CLASS_IMAGES = 100
DATA = "people:out_of_train?framing=portrait&pictures={pictures}&identities={n}&first_identity={k}"


class Arm(NamedTuple):
    """A config file, its options, and for how many people it is trained.

    In the options {classes} holds a folder of class images for each class word.
    """

    config: str
    options: list[str]
    people: int = PEOPLE


ARMS = {
    "DreamBooth-LoRA": Arm("configs/mini/lora.py", []),
    # Frozen text towers do not tell the token from the class, which the class images hold on to.
    "class images, text towers too": Arm(
        "configs/mini/lora.py",
        [
            *("--config.class_data={classes}/{word}", "--config.text_rank=8"),
            *("--config.lr_text_lora=1e-3", "--config.steps=450"),
        ],
        people=10,
    ),
    "Textual Inversion": Arm("configs/mini/textual_inversion.py", []),
}
SHIPPED, BASE = "PhotoMaker, as shipped", "prompts alone"
TITLES = {
    "rank1": f"rank-1/{AMONG}",
    "face_sim": "Face-Sim",
    "clip_t": "CLIP-T",
    "others": "Face-Sim of others",
}
FORMS = {"rank1": "{:.1%}", "face_sim": "{:.3f}", "clip_t": "{:.2f}", "others": "{:.3f}"}


# ---- The people --------------------------------------------------------------------------------


class Person:
    """One of the strangers: six pictures, and what is known of them."""

    def __init__(self, number: int):
        self.data = DATA.format(pictures=PICTURES, n=1, k=FIRST + number)
        records, read = open_records(self.data)
        self.name, self.word = records[0].identity, records[0].class_word
        self.pictures = np.stack([read(record.image) for record in records])
        self.crop = square_face_crop(self.pictures[0], records[0].face_box)


class Judge:
    """Networks that no method reads, and the faces of all people."""

    def __init__(self, people: list[Person]):
        detector = f"keypoints:{JUDGES / 'face_detector'}"
        self.faces = open_face_embedder(JUDGES / "face_net" / "model.safetensors", detector)
        self.clip = ClipScore(JUDGES / "clip")
        known = []
        for person in people:
            embeds, found = self.faces.embed(person.pictures)
            mean = embeds[found].mean(0)
            known.append(mean / np.linalg.norm(mean))
        self.known = np.stack(known)

    def __call__(self, number: int, images: np.ndarray, texts: list[str]) -> dict[str, list]:
        """A value per image, None where it cannot be measured.

        The gallery of a person is theirs and the next nine people's faces, in a circle. An image in
        which no face is found is not theirs.
        """
        gallery = (number + np.arange(AMONG)) % len(self.known)
        embeds, found = self.faces.embed(images)
        cosines = embeds @ self.known[gallery].T
        return {
            "rank1": (found & (cosines.argmax(1) == 0)).astype(float).tolist(),
            "face_sim": known_values(cosines[:, 0], found),
            "clip_t": np.asarray(self.clip.score(list(images), texts), float).tolist(),
        }

    def likeness(self, number: int, images: np.ndarray) -> list[float | None]:
        """The cosine of each image's face with the person's; None without a face."""
        embeds, found = self.faces.embed(images)
        return known_values(embeds @ self.known[number], found)


def known_values(values: np.ndarray, known: np.ndarray) -> list[float | None]:
    """For JSON: None where a value is not known."""
    return [float(v) if there else None for v, there in zip(values, known, strict=True)]


# ---- Generating --------------------------------------------------------------------------------


def generate(pipe: Any, person: Person, marked: bool) -> tuple[np.ndarray, list[str]]:
    """(uint8 [prompts * EACH, h, w, 3], what each shows), from the same noise for everyone.

    Args:
        marked: whether prompts keep the trigger word, by which the person is named.
    """
    words = [prompt.fill(person.word) for prompt in open_prompts(PROMPTS, "img")]
    texts = [each.whole("img") for each in words]
    given = [
        each.place(("text",))[0] if marked else text
        for each, text in zip(words, texts, strict=True)
    ]
    shown = [text for text in texts for _ in range(EACH)]
    prompts = [text for text in given for _ in range(EACH)]
    references = [[person.crop]] * len(prompts) if pipe.reads_references else None
    return _images(pipe, prompts, references), shown


def of_others(pipe: Any, person: Person) -> np.ndarray:
    """The class without the person's token: EACH images of anybody."""
    return _images(pipe, [f"a photo of a {person.word}"] * EACH, None)


def _images(pipe, prompts, references):
    noise = pipe.draw_latents(SEED, len(prompts), SIZE, SIZE)
    images = pipe(
        prompts,
        references=references,
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        start_merge_step=2 if references else None,
        height=SIZE,
        width=SIZE,
        batch_size=EACH,
        output_type="np",
    ).images
    return (images * 255).round().astype(np.uint8)


def evaluate(file: Path, pipe: Any, judge: Judge, person: Person, number: int, marked=True) -> dict:
    """The values of one person's images, kept in a file."""
    if not file.exists():
        found = judge(number, *generate(pipe(), person, marked))
        if marked and not pipe().reads_references:
            found["others"] = judge.likeness(number, of_others(pipe(), person))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found)
    return json.loads(file.read_text())


# ---- The arms ----------------------------------------------------------------------------------


def write_class_images(folder: Path, word: str) -> None:
    """Drawn people of a class with their captions, one image of each, unless they are there."""
    if folder.is_dir():
        return
    records, read = open_records(CLASS_DATA)
    people = {record.identity: record for record in records if record.class_word == word}
    part = folder.with_name(f".{folder.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(list(people.values())[:CLASS_IMAGES]):
        Image.fromarray(read(record.image)).save(part / f"{number:04d}.png")
        caption = join_parts(without_trigger(record.caption), record.background, record.body)
        write_text(part / f"{number:04d}.txt", caption)
    part.rename(folder)


def folder_of(work: Path, arm: str) -> Path:
    """Where an arm's runs are."""
    return work / arm.replace(",", "").replace(" ", "_")


def train_one(arm: str, number: int, person: Person, work: Path, options: list[str]) -> Path:
    """The run of a person; a complete one ends at once."""
    config, own, _ = ARMS[arm]
    run = folder_of(work, arm) / f"{number:02d}"
    if not done(run):
        names = {"classes": work / "class_images", "word": person.word}
        if any("{classes}" in option for option in own):
            write_class_images(names["classes"] / person.word, person.word)
        words = [f"--config.data={person.data}", "--config.validation_every=0", *options]
        run_training(config, run, run.with_suffix(".log"), words + [o.format(**names) for o in own])
    return run


def seconds_of(run: Path) -> float:
    """What the run's steps took, without compilation and class images."""
    config = json.loads((run / "config.json").read_text())
    rows = list(read_rows(run / "metrics.jsonl"))
    steps = np.diff([0, *(row["step"] for row in rows)])
    rates = np.array([row["images_per_second"] for row in rows])
    return float((steps * config["batch_size"] / rates).sum())


def all_values(work: Path, people: list[Person], options: list[str]) -> dict[str, list[dict]]:
    """By row of the table, each person's values."""
    from persongen_jax.pipeline import Pipeline
    from persongen_jax.systems.open import open_run

    judge, found = Judge(people), {}
    for arm in ARMS:
        found[arm] = []
        for number, person in enumerate(people[: ARMS[arm].people]):
            run = train_one(arm, number, person, work, options)
            opened: list[Any] = []

            def pipe(run=run, opened=opened):
                opened += [] if opened else [Pipeline.from_system(open_run(run).system)]
                return opened[0]

            file = folder_of(work, arm) / f"{number:02d}.json"
            values = evaluate(file, pipe, judge, person, number)
            found[arm].append(values)
            print(f"{arm}, person {number}: rank-1 {np.mean(values['rank1']):.2f}", flush=True)
    base = Pipeline.from_pretrained(ASSETS / "sdxl")
    rows = [
        evaluate(work / "base" / f"{n:02d}.json", lambda: base, judge, p, n, marked=False)
        for n, p in enumerate(people)
    ]
    base.load_method("photomaker", ASSETS / "photomaker-v1.safetensors", encoder=ASSETS / "clip")
    found[SHIPPED] = [
        evaluate(work / "shipped" / f"{n:02d}.json", lambda: base, judge, p, n)
        for n, p in enumerate(people)
    ]
    found[BASE] = rows
    return found


def measured(people: list[Person], values: list[dict], name: str) -> dict | None:
    """The measure of a metric over the first people; None where no image has it."""
    pairs = [(v, p.name) for p, own in zip(people, values, strict=False) for v in own.get(name, ())]
    pairs = [(v, name) for v, name in pairs if v is not None]
    if not pairs:
        return None
    numbers, names = zip(*pairs, strict=True)
    return measure(np.array(numbers), np.array(names))


def timed(work: Path, options: list[str]) -> dict[str, float]:
    """Seconds of the steps of one training by arm, kept in a file."""
    seconds = {arm: seconds_of(train_one(arm, 0, Person(0), work, options)) for arm in ARMS}
    write_json(work / "seconds.json", seconds)
    return seconds


def report(
    people: list[Person], found: dict[str, list[dict]], seconds: dict, options: list[str]
) -> str:
    rows = []
    for arm, values in found.items():
        own = (measured(people, values, name) for name in TITLES)
        cells = [cell(m, FORMS[n]) if m else "-" for n, m in zip(TITLES, own, strict=True)]
        took = f"{seconds[arm]:.0f}" if arm in seconds else "-"
        rows.append([arm, str(len(values)), *cells, took])
    passed = f" {' '.join(options)}" if options else ""
    return (
        "# Training on one person in the miniature\n\n"
        f"`python -m benchmarks.training.personal{passed}`, {datetime.date.today()}, "
        f"{processor()}, jax {jax.__version__}. {len(people)} strangers, {PICTURES} pictures each; "
        f"{4 * EACH} images of each by four prompts that no picture had; means and 95 % intervals "
        f"over people. {CLASS_IMAGES} class images: drawn people of the training split. Judges "
        "that no method reads. *Face-Sim of others*: the class without the "
        "person's token, compared with the person; the lower, the less the class has become "
        "them. *Seconds*: of one person's training steps with nothing beside them, without "
        "compilation and class images.\n\n"
        + markdown(["", "people", *TITLES.values(), "seconds"], rows)
        + "\n"
    )


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.personal", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--work", type=Path, default=Path("runs/personal"), help="folder of runs")
    parser.add_argument("--people", type=int, default=PEOPLE, help=f"(default: {PEOPLE})")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    parser.add_argument("--time", action="store_true", help="only measure the steps' time")
    args, options = parser.parse_known_args(argv)
    if args.people < AMONG:
        raise ValueError(f"--people {args.people}: at least {AMONG}, among whom one is sought")
    work = args.work.resolve()
    if args.time:
        print(timed(work / "timed", options))
        return
    people = [Person(number) for number in range(args.people)]
    file = work / "timed" / "seconds.json"
    seconds = json.loads(file.read_text()) if file.is_file() else {}
    text = report(people, all_values(work, people, options), seconds, options)
    print(text)
    if args.out:
        write_text(args.out, text)


if __name__ == "__main__":
    main()
