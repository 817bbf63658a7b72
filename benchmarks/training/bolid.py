"""BoLID in the miniature: the body branch and the losses on decoded images, each with and without.

    python -m benchmarks.training.bolid --work runs/bolid --out benchmarks/results/bolid.md

trains `configs/mini/bolid.py` in four arms with each seed. Strangers are then generated twice each,
from one reference: once the prompt asks for the reference's pose, once for another one. The judges
are neither an input of the method nor part of a loss. What is complete is not repeated: the command
can be stopped. Options that it does not know are passed on to all trainings.
"""

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.machine import processor
from benchmarks.training.over_seeds import difference, done, over_seeds, verdict
from benchmarks.training.seeds import run_training
from data_pipeline.cli import command
from data_pipeline.drawing.people import TRIGGER, People, draw_pictures, make_identities, render
from data_pipeline.examples.identity.bodies import Body
from data_pipeline.pictures.transforms import square_face_crop
from data_pipeline.prompts import join_parts, without_trigger
from persongen_jax.losses.keypoints import BONES, proportion_error
from persongen_jax.metrics.clip_score import ClipScore
from persongen_jax.metrics.face_embedder import open_face_embedder
from persongen_jax.metrics.measures import join_runs, measure
from persongen_jax.metrics.pose.scores import square_error
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.pose_nets import open_pose_net
from persongen_jax.tables import cell, markdown
from persongen_jax.weights.saver import write_json

CONFIG = "configs/mini/bolid.py"
JUDGES = ASSETS / "judges"
PEOPLE, SIZE, STEPS, GUIDANCE = 60, 64, 20, 4.0
ARMS = {
    "face": ["--config.bolid_body=False", "--config.losses={}"],
    "face, losses": ["--config.bolid_body=False"],
    "face and body": ["--config.losses={}"],
    "face and body, losses": [],
}
ASKED = ("the reference's pose", "another pose")
FORMS = {"pose_error": "{:.5f}", "proportion_error": "{:.4f}", "face_sim": "{:.3f}"}
FORMS |= {"joints_found": "{:.3f}", "clip_t": "{:.2f}"}
TITLES = {"pose_error": "Pose_acc (error)", "proportion_error": "proportions (error)"}
TITLES |= {"face_sim": "Face-Sim", "joints_found": "joints found", "clip_t": "CLIP-T"}
# What the method claims, as differences of arms: (metric, asked, with, without).
CLAIMS = tuple(
    (metric, asked, *arms)
    for asked in ASKED
    for metric in FORMS
    for arms in (
        ("face and body", "face"),
        ("face, losses", "face"),
        ("face and body, losses", "face and body"),
    )
)


def strangers() -> tuple[People, dict[str, People]]:
    """The references of PEOPLE strangers, half and full figures, and by ASKED what is asked for.

    Each is drawn with its true pose, so that it is known where the joints belong; only the pose
    differs between a reference and what is asked for.
    """
    people = make_identities("out_of_train", PEOPLE)
    pictures = draw_pictures(1_000_000, PEOPLE, (0, 1, 1))
    # Poses that captions name: hands on hips, waving, phone.
    pose = 1 + np.arange(PEOPLE) % 3
    turned = 1 + (pose - 1 + 1 + np.arange(PEOPLE) // 3 % 2) % 3
    own = render(people, replace(pictures, pose=pose), SIZE)
    return own, {ASKED[0]: own, ASKED[1]: render(people, replace(pictures, pose=turned), SIZE)}


def generate(run: Path) -> dict[str, np.ndarray]:
    """By ASKED, uint8 [people, h, w, 3]; the same noise for everyone in every arm."""
    from persongen_jax.pipeline import Pipeline
    from persongen_jax.systems.open import open_run

    def settings(config):
        for name in ("in_train", "out_of_train", "out_of_domain"):
            config[f"validate_{name}"] = ""

    pipe: Any = Pipeline.from_system(open_run(run, change=settings).system)
    references, asked = strangers()
    faces = [
        [square_face_crop(image, box)]
        for image, box in zip(references.images, references.face_box, strict=True)
    ]
    known = zip(references.images, references.keypoints, references.visibility, strict=True)
    bodies = {"bodies": [Body(*each) for each in known]}
    if "bodies" not in pipe.conditioner.inputs:
        bodies = {}
    out = {}
    for name, drawn in asked.items():
        parts = zip(drawn.captions, drawn.backgrounds, drawn.bodies, strict=True)
        images = pipe(
            [join_parts(*texts) for texts in parts],
            references=faces,
            **bodies,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            start_merge_step=-1,
            seed=0,
            height=SIZE,
            width=SIZE,
            batch_size=15,
            output_type="np",
        ).images
        out[name] = (images * 255).round().astype(np.uint8)
    return out


def judge(images: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """By ASKED and metric: a value per person, NaN where it cannot be measured.

    Errors are means over the joints, or bones, that are visible in the drawing and that the judge
    finds; which share of the joints it finds is a figure of its own, so that a body that it does
    not see is not taken for a good one.
    """
    references, asked = strangers()
    pose = open_pose_net(f"keypoints:{JUDGES / 'face_detector'}")
    clip = ClipScore(JUDGES / "clip")
    faces = open_face_embedder(
        JUDGES / "face_net" / "model.safetensors", f"keypoints:{JUDGES / 'face_detector'}"
    )
    wanted, there = faces.embed(references.images)
    out = {}
    for name, drawn in asked.items():
        joints, found = pose(images[name])
        steps = joints - drawn.keypoints
        counted = drawn.visibility & found
        sizes = np.full((PEOPLE, 2), SIZE)
        errors, compared = proportion_error(
            (joints / SIZE).astype(np.float32),
            (drawn.keypoints / SIZE).astype(np.float32),
            counted,
        )
        bones = (counted[:, BONES[:, 0]] & counted[:, BONES[:, 1]]).sum(1)
        visible = drawn.visibility.sum(1)
        share = counted.sum(1) / np.maximum(visible, 1)
        embeds, seen = faces.embed(images[name])
        texts = zip(drawn.captions, drawn.backgrounds, drawn.bodies, strict=True)
        said = [without_trigger(join_parts(*each), TRIGGER) for each in texts]
        out[name] = {
            "pose_error": square_error(steps, counted, sizes),
            "proportion_error": np.where(compared, errors / np.maximum(bones, 1), np.nan),
            "face_sim": np.where(seen & there, (embeds * wanted).sum(-1), np.nan),
            "joints_found": np.where(visible > 0, share, np.nan),
            "clip_t": clip.score(list(images[name]), said),
        }
    return out


def measured(values: np.ndarray, names: np.ndarray) -> dict:
    """A measure over people; see metrics/measures.py."""
    there = ~np.isnan(values)
    return measure(values[there], names[there])


def evaluate(run: Path) -> dict:
    """{asked: {metric: measure}}, kept in a file next to the run."""
    file = run.with_suffix(".json")
    before = json.loads(file.read_text()) if file.exists() else {}
    if set(FORMS) <= set(before.get(ASKED[0], ())):
        return before
    names = np.asarray(strangers()[0].identity, str)
    judged = judge(generate(run))
    found: dict[str, Any] = {
        asked: {metric: measured(values, names) for metric, values in own.items()}
        for asked, own in judged.items()
    }
    write_json(file, found)
    return found


def train_all(seed: int, work: Path, options: list[str]) -> dict[str, Path]:
    """The arms' runs; complete ones end at once."""
    runs = {}
    for arm, own in ARMS.items():
        run = work / str(seed) / arm.replace(", ", "_").replace(" ", "_")
        quiet = [f"--config.seed={seed}", "--config.validation_every=0", *own, *options]
        if not done(run):
            run_training(CONFIG, run, run.with_suffix(".log"), quiet)
        runs[arm] = run
    return runs


def report(found: dict[int, dict[str, dict]], options: list[str]) -> str:
    seeds = list(found)
    rows = []
    for arm in ARMS:
        own = [found[seed][arm] for seed in seeds]
        for asked in ASKED:
            joint = {m: join_runs([one[asked][m] for one in own]) for m in FORMS}
            counts = [sum(one[asked][m]["n"] for one in own) for m in FORMS]
            figures = (cell(joint[m], form) for m, form in FORMS.items())
            rows.append([arm, asked, *figures, ", ".join(map(str, counts))])
    claims = []
    for metric, asked, one, other in CLAIMS:
        with_it, without = (
            [found[seed][arm][asked][metric] for seed in seeds] for arm in (one, other)
        )
        if not set.intersection(*(set(each["people"]) for each in (*with_it, *without))):
            claims.append([TITLES[metric], asked, one, other, "-", "not measured"])
            continue
        interval = difference(with_it, without)
        ends = (f"{x:.5f}" if x is not None else "?" for x in (interval.low, interval.high))
        text = f"{interval.mean:.5f} [{', '.join(ends)}]"
        claims.append([TITLES[metric], asked, one, other, text, verdict(metric, interval)])
    passed = f" {' '.join(options)}" if options else ""
    return (
        "# BoLID in the miniature\n\n"
        f"`python -m benchmarks.training.bolid{passed}`, {datetime.date.today()}, {processor()}, "
        f"jax {jax.__version__}. Seeds {', '.join(map(str, seeds))}; {PEOPLE} strangers, half and "
        "full figures, an image each for each kind of prompt; means and 95 % intervals over people "
        "and seeds. Judges that are neither an input nor part of a loss.\n\n"
        + markdown(["arm", "the prompt asks for", *TITLES.values(), "n of each"], rows)
        + f"\n\nErrors are means over the joints and bones that the judge finds; n: of "
        f"{PEOPLE * len(seeds)} images, those in which a figure can be measured."
        + "\n\nDifferences, paired by person and seed:\n\n"
        + markdown(["figure", "asked for", "with", "without", "difference", ""], claims)
        + "\n"
    )


def of_seed(seed: int, work: Path, options: list[str]) -> dict[str, dict]:
    return {arm: evaluate(run) for arm, run in train_all(seed, work, options).items()}


@command
def main(argv: list[str] | None = None) -> None:
    over_seeds(argv, "bolid", __doc__.split("\n")[0], of_seed, report)


if __name__ == "__main__":
    main()
