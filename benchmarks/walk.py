"""Lists the project's files that one training step and one generate call execute.

    python -m benchmarks.walk

runs one step of the main job (makes the batch from records, puts it on the devices, traces and runs
the step), and generates one image of a person (a call of the pipeline with a prompt and a
reference). A file counts if one of its functions is called; code that runs only on import does not
count. Networks (models/), weight files (weights/) and the opening and checking of inputs
(data_pipeline/pictures/, prompt_syntax.py, pipeline/checks.py) are left out: they are what a step
computes with, not how it is assembled. docs/architecture.md has a sentence for each file of the two
lists. What the generate command adds to the call (options, the face detector, loading) is listed
separately.
"""

import argparse
import json
import sys
import tempfile
import threading
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (
    *("persongen_jax/models/", "persongen_jax/weights/", "benchmarks/"),
    *("data_pipeline/pictures/", "data_pipeline/prompt_syntax.py"),
    "persongen_jax/pipeline/checks.py",
)
MOST = 15


class Recorder:
    """Records the project's files in which a function is called while active, in all threads."""

    def __enter__(self):
        self.files = set()
        threading.setprofile(self._call)  # for threads started from here on
        sys.setprofile(self._call)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)
        threading.setprofile(None)

    def _call(self, frame, event, _):
        # Bodies of modules and classes run at import.
        if event == "call" and frame.f_code.co_flags & 0x1:  # optimised locals: a function
            self.files.add(frame.f_code.co_filename)

    def names(self) -> list[str]:
        inside = [Path(name) for name in self.files if name.startswith(f"{ROOT}/")]
        # An environment may be a folder of the checkout.
        inside = [path for path in inside if not path.is_relative_to(sys.prefix)]
        names = sorted(path.relative_to(ROOT).as_posix() for path in inside)
        return [name for name in names if not name.startswith(LEFT_OUT) and "/venv" not in name]


def of_training_step() -> list[str]:
    """The files of one step of configs/mini/photomaker_bg.py."""
    from configs.mini.photomaker_bg import get_config
    from persongen_jax.parallel.sharding import make_mesh, put_batch
    from persongen_jax.systems.assembly import assemble
    from persongen_jax.systems.open import open_system

    config, mesh = get_config(), make_mesh()
    config.data = "people:in_train?identities=8&pictures=4&framing=portrait"
    system = open_system(config, mesh)
    parts, examples = assemble(system, mesh), system.examples(0)
    with Recorder() as recorder, jax.set_mesh(mesh):
        batch = put_batch(mesh, next(examples))
        parts.step(parts.state, parts.frozen, batch, np.int32(0))
    return recorder.names()


def of_generate(folder: str) -> tuple[list[str], list[str]]:
    """The files of one call of the pipeline, and the additional ones of the generate command."""
    from PIL import Image

    from data_pipeline.drawing.people import examples
    from persongen_jax.generate import __main__ as generate
    from persongen_jax.pipeline import Pipeline

    assets, prompt = ROOT / "persongen_jax" / "assets", "a photo of a person img in the snow"
    person = examples("out_of_train", np.array([0]), np.array([0]), 64).images[0]
    pipe = Pipeline.from_pretrained(assets / "sdxl")
    pipe.load_method("photomaker", assets / "photomaker-v1.safetensors")
    with Recorder() as call:
        pipe(prompt, references=[[person]], num_inference_steps=2, start_merge_step=0)

    Image.fromarray(person).save(f"{folder}/person.png")
    options = f"--base {assets}/sdxl --method-weights {assets}/photomaker-v1.safetensors"
    options += f" --reference {folder}/person.png --steps 2 --start-merge-step 0"
    options += f" --out {folder}/out --no-compilation-cache"
    with Recorder() as command:
        generate.main([*options.split(), "--prompt", prompt])
    return call.names(), [name for name in command.names() if name not in call.names()]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the lists there")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        call, command = of_generate(folder)
    lists = {"training step": of_training_step(), "generate call": call}
    for what, names in {**lists, "additionally, in the generate command": command}.items():
        print(f"{what}: {len(names)} files")
        print("".join(f"  {name}\n" for name in names), end="")
    if args.json:
        args.json.write_text(json.dumps(lists, indent=1) + "\n")
    too_many = [what for what, names in lists.items() if len(names) > MOST]
    if too_many:
        sys.exit(f"error: {' and '.join(too_many)}: more than {MOST} files")


if __name__ == "__main__":
    main()
