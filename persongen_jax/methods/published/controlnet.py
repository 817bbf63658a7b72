"""Trains a ControlNet on a frozen base (Zhang et al., arXiv 2302.05543; thesis seeds: FaceCDM).

There is no identity: the net reads a control image and the prompt. What it has learned then acts
with every method (Pipeline.load_controlnet).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch, Field
from data_pipeline.examples.pose_image import PoseImage
from data_pipeline.examples.spatial import ControlImage
from persongen_jax.diffusion.conditioning import Conditioning
from persongen_jax.methods.base import Method, Model, Parts, condition_on_text, prompts
from persongen_jax.methods.start import find_origin, load_remaining
from persongen_jax.models.sdxl.controlnet import (
    WIDTHS,
    ControlNetModel,
    controlnet_from_unet,
)
from persongen_jax.weights.formats.controlnet import load_controlnet


class ControlNet(Method):
    """A copy of the UNet's encoder, ``model.controlnet``, that reads the map ``config.control``.

    Attributes:
        control: the name of the control image: the manifest's, the map's, and that of its scale.
    """

    groups = ((r"controlnet/.*", "controlnet"),)
    denoises_with = ("controlnet",)
    at_trigger = False
    reads_references = False
    control = "pose"

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """The ControlNet: the UNet's copy, or ``config.start_from``'s.

        Reads config.control, dtype and start_from: a ControlNet in diffusers' format, or a run.
        """
        model: Model = parts.model
        origin = find_origin(config)
        if origin.file:
            kw = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.float32}
            model.controlnet, _ = load_controlnet(origin.file, model.unet.config, **kw)
        else:
            model.controlnet = new_controlnet(model, rngs)
        load_remaining(model, origin)

    def fields(self, parts: Parts, config: ConfigDict) -> tuple[Field, ...]:
        self.control = config.control
        return prompts(parts, config, at_trigger=False), control_image(config)

    def condition(self, model: Model, batch: Batch) -> Conditioning:
        return condition_on_text(model, batch).with_map(self.control, batch[self.control])

    def denoise(
        self,
        model: Model,
        x: jax.Array,
        t: ArrayLike,
        conditioning: Conditioning,
        step: ArrayLike | None = None,
    ) -> jax.Array:
        image = conditioning.maps[self.control]
        residuals = model.controlnet(x, t, conditioning, image.pixels, image.scale)
        return model.unet(x, t, conditioning.with_residuals(residuals))


def new_controlnet(model: Model, rngs: nnx.Rngs) -> ControlNetModel:
    """A copy of the UNet's encoder whose image is ``vae_scale_factor`` times as large as latents.

    The published widths are those for a factor of 8; a smaller one takes the first of them.
    """
    halvings = int(math.log2(model.vae.vae_scale_factor))
    widths = WIDTHS[: halvings + 1]
    own = {"conditioning_embedding_out_channels": widths}
    return controlnet_from_unet(model.unet, own, rngs=rngs)


def control_image(config: ConfigDict, *, optional: bool = False) -> Field:
    """The control image, dropped on its own (config.control, control_drop_prob).

    ``optional``: a call without one has a black one.
    """
    # A pose is drawn from the keypoints where a record has no image of it.
    kind = PoseImage if config.control == "pose" else ControlImage
    field = kind(config.control, optional=optional)
    field.drop_prob = config.control_drop_prob
    return field
