"""Images from attributes: a trained run of systems/ddpm.py as a Python object.

pipe = AttributePipeline.from_run("runs/attributes/drawn_faces")
images = pipe("glasses=1,beard=0", images=16)                # uint8 [16, h, w, c]
frames = pipe.interpolate("smiling=0", "smiling=1")          # uint8 [9, h, w, c]
edited = pipe.edit("face.png", "glasses=1")                  # uint8 [h, w, c]
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline.attributes.folder_pictures import square
from data_pipeline.attributes.labelled import to_pixels
from data_pipeline.attributes.vocabulary import RequestError
from data_pipeline.pictures.reading import load_image
from persongen_jax.diffusion.inversion import make_inverse_plan
from persongen_jax.diffusion.options import SamplingOptions
from persongen_jax.diffusion.samplers import final_latents, image_keys, init_carry, run_steps
from persongen_jax.parallel.sharding import to_host
from persongen_jax.systems.ddpm import Ddpm, can_guide

AT_ONCE, GUIDANCE, SEED = 64, 3.0, 42
# The settings of sampling that have an effect here.
EDIT_READS = ("num_inference_steps", "guidance_scale")
READ = (*EDIT_READS, "scheduler", "scheduler_options", "seed", "batch_size")


class AttributePipeline:
    """Generates, interpolates and edits.

    Args:
        system: with trained weights.

    Attributes:
        defaults: the settings where a call gives no others.
    """

    def __init__(self, system: Ddpm):
        self.system = system
        guidance = GUIDANCE if can_guide(system.config) else 1.0
        self.defaults = SamplingOptions(guidance_scale=guidance, seed=SEED)

    @classmethod
    def from_run(cls, run: str | Path, step: int | None = None) -> "AttributePipeline":
        """Open a run's working directory.

        Args:
            step: of the checkpoint; None: the newest intact one.

        Raises:
            ValueError: a run of another system. FileNotFoundError: there is no run.
        """
        from persongen_jax.systems.open import open_run

        found = open_run(run, step)
        if not isinstance(found.system, Ddpm):
            raise ValueError(
                f"{run} is a run of {found.config.system}, which does not use attributes; "
                "give --base and --method-weights instead of --run"
            )
        return cls(found.system)

    @property
    def size(self) -> tuple[int, int, int]:
        """(h, w, c) of the images."""
        return self.system.described.shape

    def __call__(
        self,
        requests: str | Sequence[str],
        *,
        images: int = 1,
        progress: Callable = lambda steps: None,
        options: SamplingOptions | None = None,
        **named: Any,
    ) -> np.ndarray:
        """Images for each request, uint8 [requests * images, h, w, c].

        Args:
            requests: such as "glasses=1,beard=0"; "" for anything seen in training.
            images: per request. Image i of every request starts from the same noise.
            progress: called with the number of steps done since the last call.
            options: the settings that are not given by name; default: ``defaults``.
            named: settings, by the names of SamplingOptions (diffusion/options.py) that are in
                READ. guidance_scale is the s of ε = ε_u + s (ε_c - ε_u), the paper's 1 + w, above
                0; 1 turns it off.

        Raises:
            RequestError: an attribute that the run does not have, or a contradiction.
            ValueError: a setting that is unknown, or out of its range.
        """
        options = self._options(options, named)
        requests = [requests] if isinstance(requests, str) else list(requests)
        asked = self._request_arrays(requests)
        batch = {name: np.repeat(rows, images, axis=0) for name, rows in asked.items()}
        keys = [self._keys(options.seed or 0, purpose, images, len(requests)) for purpose in (0, 1)]
        plan = self.system.plan(options)
        noise = jax.vmap(lambda key: jax.random.normal(key, self.size))(keys[0])
        return self._sample(batch, noise, plan, keys[1], options, progress)

    def interpolate(
        self,
        start: str,
        end: str,
        *,
        frames: int = 9,
        index: int = 0,
        progress: Callable = lambda steps: None,
        options: SamplingOptions | None = None,
        **named: Any,
    ) -> np.ndarray:
        """Interpolate linearly between two requests on the same noise, uint8 [frames, h, w, c].

        An attribute that only one end sets is halfway at the other. The other arguments are those
        of ``__call__``.

        Args:
            frames: at least 2, including the ends.
            index: of the noise, like an image's number in ``__call__``.

        Raises:
            ValueError: fewer than two frames, or equal ends.
        """
        if frames < 2:
            raise ValueError(f"frames={frames}: an interpolation needs at least 2")
        options = self._options(options, named)
        batch = interpolate_attributes(self._request_arrays([start, end]), frames)
        if np.allclose(batch["attributes"][0], batch["attributes"][-1]):
            raise RequestError(f"attributes: {start!r} and {end!r} ask for the same")
        keys = [self._keys(options.seed or 0, p, index + 1, 1)[index] for p in (0, 1)]
        first = jax.random.normal(keys[0], self.size)
        noise = jnp.broadcast_to(first, (frames, *self.size))
        plan = self.system.plan(options)
        repeated = jnp.broadcast_to(keys[1], (frames,))
        return self._sample(batch, noise, plan, repeated, options, progress)

    def one_sided_attributes(self, start: str, end: str) -> list[str]:
        """The attributes and groups that only one end of an interpolation sets."""
        told = self.system.attributes.of_requests([start, end])["attributes_known"] > 0
        vocabulary = self.system.vocabulary
        own = (name for name, one in zip(vocabulary.names, told[0] != told[1], strict=True) if one)
        return list(dict.fromkeys(map(vocabulary.unit_of, own)))

    def edit(
        self,
        image: Any,
        request: str,
        *,
        source: str = "",
        progress: Callable = lambda steps: None,
        **named: Any,
    ) -> np.ndarray:
        """An image with other attributes, by DDIM inversion; uint8 [h, w, c].

        The image is inverted to its noise under ``source``, without guidance, and generated from
        there under ``request``.

        Args:
            image: anything that load_image accepts (data_pipeline/pictures/reading.py): a path, a
                file object, a PIL image, an array; if the size differs, its central square is
                scaled.
            request: what it should show; attributes left out are unknown.
            source: what it shows; "": unknown.
            named: num_inference_steps, guidance_scale.
        """
        options = replace(self._options(None, named, EDIT_READS), scheduler="ddim")
        steps = options.num_inference_steps
        pixels = jnp.asarray(to_pixels(self.read(image))[None])
        inverse = make_inverse_plan(self.system.scheduler_config, steps)
        graphdef, state = nnx.split(self.system.model)
        of_source = {"batch": self._request_arrays([source])}
        noise = _run(self.system, graphdef, state, of_source, pixels, inverse)
        progress(steps)
        asked = self._request_arrays([request])
        plan = self.system.plan(options)
        return self._sample(asked, noise, plan, None, options, progress)[0]

    def read(self, image: Any) -> np.ndarray:
        """An image in the model's format, uint8 [h, w, c]."""
        height, _, channels = self.size
        return square(load_image(image, "image"), height, channels)

    def _request_arrays(self, requests) -> dict[str, np.ndarray]:
        """The requests' arrays; warns about combinations that were rare in training."""
        config, asked = self.system.config, self.system.attributes.of_requests(requests)
        told = asked["attributes_known"] > 0
        if config.conditioning == "none" and told.any():
            raise ValueError("the run is unconditional: leave the attributes out")
        if config.conditioning == "none" or config.hide_prob > 0:
            return asked
        rare = ~told.all(1) if config.drop_prob == 0 else told.any(1) & ~told.all(1)
        if rare.any():
            warnings.warn(
                f"{requests[int(rare.argmax())]!r} leaves out attributes; training had few or no "
                "examples without them (config.hide_prob=0); name all of them",
                stacklevel=3,
            )
        return asked

    def _keys(self, seed, purpose, images, requests):
        return jnp.tile(image_keys(seed, purpose, images), requests)

    def _options(
        self, options: SamplingOptions | None, named: dict, read: Sequence[str] = READ
    ) -> SamplingOptions:
        """``options`` with those of ``named``; None: not given."""
        named = {name: value for name, value in named.items() if value is not None}
        unread = sorted({*named, *(options.changed() if options else ())} - set(read))
        if unread:
            raise ValueError(f"{unread[0]} is not a setting of this; there are {', '.join(read)}")
        return replace(options or self.defaults, **named)

    def _sample(self, batch, noise, plan, keys, options, progress):
        system, out, n = self.system, [], len(noise)
        guidance_scale = options.guidance_scale
        if guidance_scale <= 0:
            raise ValueError(f"guidance_scale={guidance_scale:g}: give a number above 0; 1 is off")
        if guidance_scale != 1 and not can_guide(system.config):
            raise ValueError(
                f"guidance_scale={guidance_scale:g}: this run was not trained both with and "
                "without attributes; use 1"
            )
        guidance = None if guidance_scale == 1 else float(guidance_scale)
        at_once = min(n, options.batch_size or AT_ONCE)
        for start in range(0, n, at_once):
            # The last batch is padded with its last image: every batch has the same shape.
            rows = np.minimum(np.arange(start, start + at_once), n - 1)
            inputs = {"batch": {k: v[rows] for k, v in batch.items()}, "guidance": guidance}
            own = None if keys is None else keys[rows]
            images = to_host(system.sample(system.model, inputs, noise[rows], plan, own))
            out.append(images[: n - start])
            progress(plan.num_steps)
        return (np.concatenate(out) * 255).round().astype(np.uint8)


def interpolate_attributes(ends: dict, frames: int) -> dict:
    """Attributes of two requests, [2, K] each, to those of all frames, [frames, K]."""
    values, known = ends["attributes"], ends["attributes_known"]
    values = np.where(known > 0, values, 0.5)
    part = np.linspace(0, 1, frames, dtype=np.float32)[:, None]
    return {
        "attributes": (1 - part) * values[0] + part * values[1],
        "attributes_known": np.broadcast_to(known.max(0), (frames, known.shape[1])),
    }


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(system, graphdef, state, inputs, latents, plan):
    """Latents after the plan's steps, not decoded."""
    model = nnx.merge(graphdef, state)
    carry = init_carry(plan, latents)
    predict = system.denoiser(model, inputs)
    carry = run_steps(plan, predict, carry, None, 0, plan.num_steps)
    return final_latents(carry)
