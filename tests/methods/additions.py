"""A method from outside the package: a control image, a second network, its own loss terms."""

import jax.numpy as jnp

from data_pipeline.examples.spatial import ControlImage, Weight
from persongen_jax.methods.base import Method, condition_on_text, prompts
from persongen_jax.models.layers import Conv


class Controlled(Method):
    """A pose image, passed through one convolution, is added to the UNet's prediction."""

    groups = ((r"hint/.*", "hint"),)
    denoises_with = ("hint",)

    def attach(self, parts, config, rngs):
        kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": rngs}
        factor = parts.model.vae.vae_scale_factor
        channels = parts.model.unet.config["in_channels"]
        parts.model.hint = Conv(3, channels, factor, strides=factor, **kw)

    def fields(self, parts, config):
        return prompts(parts, config, at_trigger=False), ControlImage("pose")

    def condition(self, model, batch):
        return condition_on_text(model, batch).with_map("pose", batch["pose"])

    def denoise(self, model, x, t, conditioning, step=None):
        return model.unet(x, t, conditioning) + hint(model, conditioning)


class Bare(Controlled):
    """Without the UNet, so that a step compiles at once; weighted, and with its own loss terms."""

    def fields(self, parts, config):
        return *super().fields(parts, config), Weight()

    def denoise(self, model, x, t, conditioning, step=None):
        return x + hint(model, conditioning)

    def losses(self, model, batch, step):
        far = abs(step.x0() - step.latents).mean(axis=(1, 2, 3))
        return {"loss": step.mse, "far": far, "late": step.timesteps > 500}


def hint(model, conditioning):
    """[b, h, w, c] of the pose."""
    pose = conditioning.maps["pose"]
    out = model.hint(pose.pixels)
    return out if pose.scale is None else out * pose.scale[:, None, None, None]
