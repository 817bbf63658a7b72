"""Generates the class images that a run lacks (DreamBooth, arXiv 2208.12242, section 3.2)."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, cast

import jax
import numpy as np
from tqdm import tqdm

from data_pipeline.pictures.listing import list_images
from data_pipeline.records.class_images import missing_images
from persongen_jax.diffusion.options import SamplingOptions
from persongen_jax.methods.personal.base import Personal
from persongen_jax.parallel.sharding import mesh_for
from persongen_jax.pipeline.text_to_image import Pipeline

if TYPE_CHECKING:
    from persongen_jax.systems.sdxl import Sdxl


def generate_missing(system: "Sdxl") -> list[str]:
    """Fill the folder of class images up, by the sampler of validations.

    Each has noise of its own, so that a stopped run goes on where it was. The system's own model
    must still be the base, as it is before the first step, also where a run is resumed.

    Returns:
        Lines for the log.

    Raises:
        ValueError: several processes; one of them would have to wait for the other's images.
    """
    wanted = cast(Personal, system.method).class_images
    folder = Path(wanted.folder)
    missing = missing_images(folder, wanted.count)
    if not missing:
        return []
    if jax.process_count() > 1:
        raise ValueError(
            f"{folder}: {missing} of {wanted.count} class images are missing; several processes "
            "do not generate them: start the run on one first, or give a folder that has them"
        )
    if system.config.start_from:
        raise ValueError(
            f"{folder}: {missing} of {wanted.count} class images are missing, and a run that "
            "starts from another one has no base to generate them with; start that one with them"
        )
    folder.mkdir(parents=True, exist_ok=True)
    config, size = system.config, system.config.size
    pipe = Pipeline.from_system(system, mesh=mesh_for(config), shard_weights=config.shard_frozen)
    draws = SamplingOptions.of_validation(config).plan(system.scheduler_config).stochastic
    taken = {Path(name).stem for name in list_images(folder)}
    free = (number for number in itertools.count() if f"{number:04d}" not in taken)
    numbers = list(itertools.islice(free, missing))
    # A sampler that draws noise draws by an image's place in its batch: then each is one alone.
    batch = pipe.batch_size_for(1 if draws else config.validation_batch or None, missing)
    print(f"{folder}: generating {missing} class images of {wanted.prompt!r}")
    step = 1 if draws else batch
    for start in tqdm(range(0, missing, step), unit="batch", disable=None):
        here = numbers[start : start + step]
        noise = [pipe.draw_latents(config.seed + number, 1, size, size)[0] for number in here]
        own = {"seed": config.seed + here[0] if draws else None, "height": size, "width": size}
        own |= {"guidance_scale": config.class_guidance} if config.class_guidance else {}
        images = pipe(
            [wanted.prompt] * batch,
            latents=np.stack(noise + noise[-1:] * (batch - len(here))),
            options=SamplingOptions.of_validation(config, start_merge_step=None, **own),
            batch_size=batch,
        ).images
        for number, image in zip(here, images, strict=False):
            part = folder / f".{number:04d}.part"
            image.save(part, format="PNG")
            part.rename(folder / f"{number:04d}.png")
    return [f"{folder}: generated {missing} class images"]
