"""Checks whether a code change affects any number: record before and after, then compare.

    python -m persongen_jax.train --config configs/mini/photomaker_bg.py --workdir RUN \\
        --config.checkpoint_every=100 --config.keep_checkpoints=0 --config.validation_every=0
    python -m benchmarks.training.same_numbers record before.npz --run RUN
    ...                                                       (the change)
    python -m benchmarks.training.same_numbers record after.npz --run RUN
    python -m benchmarks.training.same_numbers compare before.npz after.npz

It records for the main job: losses and gradients from the run's checkpoints at steps 0, 100, 200
and 300; the losses of the first 40 steps from the start; images of a few calls. For all seven
methods: trained and frozen parameters, FLOPs of a step in the miniature, and at full size those of
the step and the sampler that ``aot`` compiles. Both records must be made on one machine, by code
that has this file; results/same_numbers.md has the comparison with the code before it.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np

METHODS = (
    *("photomaker", "id_branch", "dual", "ip_lora"),
    *("photomaker_bg", "photomaker_bg_body", "cascade"),
)
CHECKPOINTS = (0, 100, 200, 300)
FIRST_STEPS = 40
MAIN_JOB = "configs/mini/photomaker_bg.py"
# Relative limits; for gradients on their norm over all arrays.
LIMITS = {"loss": 1e-6, "gradient": 1e-5, "first steps": 1e-4, "counts": 0, "images": 1e-6}


def record_gradients(run: Path) -> dict:
    """ "loss/STEP" [] and "gradient/STEP/PATH" of every trained array."""
    from persongen_jax.config import load_config
    from persongen_jax.parallel.sharding import make_mesh, replicated
    from persongen_jax.systems.open import open_system
    from persongen_jax.training.partition import split_model
    from persongen_jax.training.step import keys_of, merge_model
    from persongen_jax.training.trained import load_trained

    system = open_system(load_config(MAIN_JOB, {}))
    graphdef, at_start, frozen, _ = split_model(system.model, system.table)

    @jax.jit
    def gradient(trainable, batch, step):
        def mean_loss(trainable):
            draws = system.draw(keys_of(system.config.seed, step), batch)
            model = merge_model(graphdef, trainable, frozen)
            return system.losses(model, batch, draws)["loss"].mean()

        return jax.value_and_grad(mean_loss)(trainable)

    found = {}
    for step in CHECKPOINTS:
        trainable = at_start
        if step:
            trainable, _ = load_trained(run, replicated(make_mesh()), step)
        loss, gradients = gradient(trainable, next(system.examples(step)), np.int32(step))
        found[f"loss/{step}"] = loss
        found |= {f"gradient/{step}/{path}": array for path, array in gradients.items()}
    return found


def record_first_steps() -> dict:
    """ "first steps" [40], the main job's losses from the start."""
    from persongen_jax.config import load_config
    from persongen_jax.parallel.sharding import make_mesh, put_batch
    from persongen_jax.systems.assembly import assemble
    from persongen_jax.systems.open import open_system

    mesh = make_mesh()
    parts = assemble(open_system(load_config(MAIN_JOB, {}), mesh), mesh)
    state, examples, losses = parts.state, parts.system.examples(0), []
    for step in range(FIRST_STEPS):
        batch = put_batch(mesh, next(examples))
        with jax.set_mesh(mesh):
            state, metrics = parts.step(state, parts.frozen, batch, np.int32(step))
        losses.append(float(metrics["loss"]))
    return {"first steps": np.array(losses)}


def record_counts() -> dict:
    """ "counts/METHOD", JSON of everything that is counted."""
    from persongen_jax.aot.programs import sampler, training, with_batch
    from persongen_jax.config import load_config
    from persongen_jax.parallel.sharding import make_mesh
    from persongen_jax.study.cost import count_trained
    from persongen_jax.systems.assembly import assemble, step_spec
    from persongen_jax.systems.open import open_system
    from persongen_jax.training import flop_count

    mesh, found = make_mesh(jax.devices()[:1]), {}
    for name in METHODS:
        config = load_config(f"configs/mini/{name}.py", {})
        config.data = "people:in_train?identities=16&pictures=4&framing=portrait"
        parts = assemble(open_system(config, mesh), mesh)
        batch = next(parts.system.examples(0))
        arguments = (parts.state, parts.frozen, batch, step_spec(mesh))
        file = "configs/base.py" if name == "photomaker" else f"configs/{name}.py"
        full = with_batch(load_config(file, {"base": "", "start_from": ""}), 2, 1)
        counts = {
            "miniature": {group: int(n) for group, n in parts.counts().items()},
            "step": int(flop_count.of_function(parts.step, *arguments)),
            "full size": count_trained(file),
            "aot step": [int(training(full, mesh, cached=c).flops()) for c in (False, True)],
            "aot sampler": int(sampler(full, mesh, steps=30).flops()),
        }
        found[f"counts/{name}"] = np.array(json.dumps(counts, sort_keys=True))
    return found


def record_images(run: Path) -> dict:
    """ "images/CALL" [n, h, w, 3] of the base, of the run, and of the shipped PhotoMaker file."""
    from data_pipeline.drawing.people import examples
    from persongen_jax.pipeline import Pipeline

    assets = Path(__file__).parents[2] / "persongen_jax" / "assets"
    faces = list(examples("out_of_train", np.array([0, 1]), np.array([0, 1]), 64).images)
    options = {"num_inference_steps": 6, "output_type": "np", "seed": 3, "height": 64, "width": 64}
    pipe = Pipeline.from_pretrained(assets / "sdxl")
    found = {"images/base": pipe(["a photo of a person in the snow"], **options).images}
    options["start_merge_step"] = 1
    pipe.load_method(None, run)
    prompt = "a photo of a person img in a red suit"
    scales = {"background": 0.7, "identity": [(0.3, 1.0, 0.8)], "lora": 0.9}
    given = {"references": [faces[:1], faces], "background": "a snowy night", "scales": scales}
    found["images/run"] = pipe([prompt] * 2, "", **given, **options).images
    pipe.load_method("photomaker", assets / "photomaker-v1.safetensors")
    found["images/file"] = pipe([prompt], references=[faces[1:]], **options).images
    return found


def compare(before: dict, after: dict) -> list[tuple[str, float, float]]:
    """(what, the largest relative difference, its limit), one line per entry of LIMITS."""
    if before.keys() != after.keys():
        raise ValueError(f"the records differ in {sorted(before.keys() ^ after.keys())[:5]}")
    worst = dict.fromkeys(LIMITS, 0.0)
    for step in CHECKPOINTS:
        paths = [name for name in before if name.startswith(f"gradient/{step}/")]
        away = sum(np.square(before[p].astype(np.float64) - after[p]).sum() for p in paths)
        size = sum(np.square(before[p].astype(np.float64)).sum() for p in paths)
        worst["gradient"] = max(worst["gradient"], float(np.sqrt(away / size)))
    for name, array in before.items():
        what = name.split("/")[0]
        if what == "counts":
            worst[what] += str(array) != str(after[name])
        elif what != "gradient":
            away = np.abs(array.astype(np.float64) - after[name]).max()
            worst[what] = max(worst[what], float(away / np.abs(array).max()))
    return [(what, worst[what], limit) for what, limit in LIMITS.items()]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record")
    record.add_argument("out", type=Path)
    record.add_argument("--run", type=Path, required=True, help="of the main job, see above")
    both = commands.add_parser("compare")
    both.add_argument("before", type=Path)
    both.add_argument("after", type=Path)
    args = parser.parse_args(argv)
    if args.command == "record":
        found = record_gradients(args.run) | record_first_steps()
        found |= record_counts() | record_images(args.run)
        np.savez(args.out, **{name: np.asarray(value) for name, value in found.items()})
        return
    rows = compare(*(dict(np.load(path)) for path in (args.before, args.after)))
    for what, worst, limit in rows:
        print(f"{what}: {worst:.3g} (at most {limit:g})")
    if any(worst > limit for _, worst, limit in rows):
        sys.exit("error: the numbers are not the same")


if __name__ == "__main__":
    main()
