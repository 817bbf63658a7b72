"""Images of the user's own prompts while a run trains, by ``config.sample_prompts``.

    samples = open_samples(system, workdir, start_step)
    if samples and not samples.has(step):
        samples(model, step)

writes ``workdir/samples/step_000500/1_1.png``: the number of the prompt, and of its image. They
show what was learned and measure nothing; validations do (evaluation/validation.py).
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from persongen_jax.evaluation.generating import PeopleGenerator
from persongen_jax.evaluation.people import open_people
from persongen_jax.evaluation.prompts import ValidationPrompt
from persongen_jax.evaluation.validation import write_image_file
from persongen_jax.parallel.sharding import mesh_for
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.sdxl import Sdxl
from persongen_jax.systems.sdxl_config import SETS
from persongen_jax.training.stopping import Stopped


class Samples:
    """What is constant between steps; opening it checks the prompts.

    The class word, references and other inputs are those of the first person of the first set to
    validate on, or else of the training data.

    Args:
        system: systems.sdxl.Sdxl. Reads its config's sample_prompts, sample_images and sample_seed,
            and under "Validation" how to sample.
        workdir: of the run.
        start_step: the step from which training resumes; samples of later steps are deleted.

    Attributes:
        should_stop: called between sampling steps; True ends them, and nothing is written.

    Raises:
        ValueError: no prompts, or one that the method cannot read.
    """

    def __init__(self, system: Sdxl, workdir: Path, start_step: int = 0):
        config = system.config
        if not config.sample_prompts:
            raise ValueError(
                f"config.sample_every={config.sample_every} needs prompts: "
                "--config.sample_prompts=\"('a photo of a {word} img',)\""
            )
        if isinstance(config.sample_prompts, str):
            raise ValueError(
                f"config.sample_prompts={config.sample_prompts!r} is one text; give a tuple of them"
            )
        self.system, self.folder = system, workdir / "samples"
        self.should_stop: Callable[[], bool] = lambda: False
        self.mesh = mesh_for(config)
        prompts = [ValidationPrompt(text) for text in config.sample_prompts]
        self.generate = PeopleGenerator(system, prompts, config.sample_images, config.sample_seed)
        specs = (*(config[f"validate_{name}"] for name in SETS), config.data)
        self.person = open_people(next(filter(None, specs)), system, 1)[0]
        self.generate.check_prompts([self.person.word])
        for path in self.folder.glob("step_*"):
            if int(re.sub(r"\D", "", path.name)) > start_step:
                shutil.rmtree(path)

    def has(self, step: int) -> bool:
        """Whether all images of ``step`` exist already."""
        return all(self._path(step, *place).exists() for place in self._places())

    def __call__(
        self,
        model: Any,
        step: int,
        write_image: Callable[[str, np.ndarray, int], object] | None = None,
    ) -> None:
        """Generate with ``model`` as it is after ``step`` steps.

        Args:
            write_image: called with (name, uint8 [h, w, 3], step) for each prompt, its images in a
                row.
        """
        sharded = {"shard_weights": self.system.config.shard_frozen}
        pipe = Pipeline.from_system(self.system, model, mesh=self.mesh, **sharded)
        self.generate.should_stop = lambda: self.should_stop()
        try:
            (images,) = self.generate(pipe, [self.person], said="samples")
        except Stopped:
            return
        self._path(step, 0, 0).parent.mkdir(parents=True, exist_ok=True)
        for i, j in self._places():
            write_image_file(self._path(step, i, j), images[i, j])
        for number, (prompt, own) in enumerate(zip(self.generate.prompts, images, strict=True), 1):
            if write_image:
                name = f"samples/{number}: {prompt.general[:80]}"
                write_image(name, np.concatenate(list(own), axis=1), step)
        print(f"samples, step {step}: {self._path(step, 0, 0).parent}")

    def _places(self):
        """(prompt, image) of each."""
        return np.ndindex(len(self.generate.prompts), self.generate.images)

    def _path(self, step: int, prompt: int, image: int) -> Path:
        return self.folder / f"step_{step:06d}" / f"{prompt + 1}_{image + 1}.png"


def open_samples(system: Any, workdir: Path, start_step: int = 0) -> Samples | None:
    """The samples of a run; None without ``config.sample_every``."""
    return Samples(system, workdir, start_step) if system.config.get("sample_every") else None
