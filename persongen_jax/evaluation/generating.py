"""Generates people x prompts x images with a model in memory, for validations and samples."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from persongen_jax.diffusion.options import SamplingOptions
from persongen_jax.diffusion.plan import make_plan
from persongen_jax.evaluation.prompts import ValidationPrompt
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.sdxl import Sdxl
from persongen_jax.training.stopping import Stopped


class PeopleGenerator:
    """Generates as the config says under "Validation".

    Args:
        system: systems.sdxl.Sdxl; its config's size, validation_size, validation_steps,
            validation_batch, validation_negative_prompt and the keys of SamplingOptions are read.
        prompts: for each person.
        images: of each person and prompt.
        seed: of the initial noise.

    Attributes:
        size: side of the images in pixels.
        options: of the sampler.
        should_stop: called between sampling steps; True ends it with Stopped.
    """

    def __init__(
        self, system: Sdxl, prompts: Sequence[ValidationPrompt], images: int, seed: int
    ) -> None:
        config = system.config
        self.system, self.config = system, config
        self.prompts, self.images, self.seed = prompts, images, seed
        self.size = config.validation_size or config.size
        self.should_stop: Callable[[], bool] = lambda: False
        # Every call gets the same initial noise; a sampler that draws more noise uses a seed.
        draws = make_plan(system.base.scheduler_config, config.validation_steps).stochastic
        size = {"height": self.size, "width": self.size}
        own: dict[str, Any] = {"seed": seed if draws else None, "output_type": "np", **size}
        if not any(field.identity for field in system.fields):
            own["start_merge_step"] = None  # there is no identity to merge later
        self.options = SamplingOptions.of_validation(config, **own)

    def check_prompts(self, words: Iterable[str]) -> None:
        """PromptError if a prompt cannot be used with one of these class words."""
        text: Any = next(field for field in self.system.fields if field.name == "text")
        reads = any(field.identity for field in self.system.fields)
        for word in sorted(set(words)):
            for prompt in self.prompts:
                general, _ = prompt.fill(word).place(text.streams)
                text.read(general, self.config.validation_references if reads else 0)

    def __call__(
        self, pipe: Pipeline, people: Sequence[Any], most: int | None = None, said: str = ""
    ) -> np.ndarray:
        """uint8 [people, prompts, images, h, w, 3].

        Image k of prompt j starts from the same noise for everyone and at every step of training,
        so that sheets differ only by the person and by what was learned.

        Args:
            people: people.Person each.
            most: people in the largest set, as one batch size fits all; default: these.
            said: the name of the progress bar.
        """
        shape = (len(people), len(self.prompts), self.images)
        noise = pipe.draw_latents(self.seed, shape[1] * shape[2], self.size, self.size)
        jobs = list(np.ndindex(shape))
        # One batch size for all sets, or each would need its own program.
        total = (most or len(people)) * shape[1] * shape[2]
        batch = pipe.batch_size_for(self.config.validation_batch or None, total)
        out = []
        with tqdm(total=len(jobs), desc=said, unit="picture", leave=False, disable=None) as bar:
            for start in range(0, len(jobs), batch):
                here = jobs[start : start + batch]
                out.append(self._batch(pipe, people, here, noise, batch))
                bar.update(len(here))
        images = np.concatenate(out)
        return images.reshape(*shape, *images.shape[1:])

    def _batch(self, pipe, people, jobs, noise, batch):
        texts = [self.prompts[j].fill(people[i].word).place(pipe.streams) for i, j, _ in jobs]
        given = {key: [own[key] for _, own in texts] for key in texts[0][1]}
        for each in self.system.fields:
            if each.name in pipe.conditioner.inputs:
                own = [people[i].given(each, self.size) for i, *_ in jobs]
                given |= {each.name: own} if all(one is not None for one in own) else {}
        images = pipe(
            [text for text, _ in texts],
            self.config.validation_negative_prompt if self.options.guidance > 1 else None,
            references=[people[i].crops for i, _, _ in jobs] if pipe.reads_references else None,
            **given,
            latents=np.stack([noise[j * self.images + k] for _, j, k in jobs]),
            progress=self._should_stop,
            options=self.options,
            batch_size=batch,
        ).images
        return (images * 255).round().astype(np.uint8)

    def _should_stop(self, _):
        if self.should_stop():
            raise Stopped
