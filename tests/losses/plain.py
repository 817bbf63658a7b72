"""A method without a UNet, so that what a step with losses compiles is the losses alone."""

import jax.numpy as jnp

from persongen_jax.methods.base import Method, condition_on_text, prompts
from persongen_jax.models.layers import Conv


class Plain(Method):
    """One convolution predicts the noise; there is no identity."""

    groups = ((r"hint/.*", "hint"),)
    denoises_with = ("hint",)
    at_trigger = reads_references = False

    def attach(self, parts, config, rngs):
        channels = parts.model.unet.config["in_channels"]
        kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": rngs}
        parts.model.hint = Conv(channels, channels, 3, padding=1, **kw)

    def fields(self, parts, config):
        return (prompts(parts, config, at_trigger=False),)

    def condition(self, model, batch):
        return condition_on_text(model, batch)

    def denoise(self, model, x, t, conditioning, step=None):
        return x + model.hint(x)


class Alone(Plain):
    """The same whose denoising loss does not count: what moves it are losses on images alone."""

    def losses(self, model, batch, step):
        return {"loss": 0 * step.mse}
