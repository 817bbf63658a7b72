"""Text to images with ``Pipeline``, from prompts to arrays on the host, with random weights."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.prompts import Tokenizers
from persongen_jax.bench.device import check_finite, describe_device, final_figures
from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
from persongen_jax.models.lora import remove_adapters
from persongen_jax.models.platform import attention_by
from persongen_jax.parallel.sharding import make_mesh
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.drawn_weights import with_random_weights
from persongen_jax.systems.open import abstract_system
from persongen_jax.systems.sdxl import Sdxl
from persongen_jax.training.flop_count import of_function
from persongen_jax.weights.tiny_tokenizer import SDXL_PAD_TOKENS, write_tiny_tokenizer

PROMPT = "a photo of a man img in the desert"


class SampleRow:
    """One setting of the sampler.

    Args:
        config: a training's config, for its base, method, ``size``, ``batch_size`` and dtypes.
        steps: of the sampler.
        guidance: of the sampler; 1 halves the work.
        identity: with the config's method and a reference; False: the base alone.
        attention: "auto" or "xla".
    """

    def __init__(
        self, config: ConfigDict, *, steps: int, guidance: float, identity: bool, attention: str
    ):
        self.device = describe_device()  # before it allocates memory
        system: Any = abstract_system(config)
        model = with_random_weights(system.model)
        if not identity:
            remove_adapters(model.unet)
        base = replace(system.base, model=model, tokenizers=tiny_tokenizers(), path="")
        prompt, batch, side = PROMPT, config.batch_size, config.size
        where = {"mesh": make_mesh(fsdp=config.fsdp), "shard_weights": config.shard_frozen}
        self.pipe, extra = Pipeline(base, **where), {}
        if identity:
            self.pipe = Pipeline.from_system(Sdxl(config, base, system.method), **where)
            references = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
            extra["references"] = [list(references)] * batch
        else:
            prompt = prompt.replace(" img", "")
        self.call = {
            "prompt": [prompt] * batch,
            "height": side,
            "width": side,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "batch_size": batch,
            "output_type": "np",
            **extra,
        }
        self.attention = attention

    def prepare(self) -> dict:
        """Sample once, including compilation, and describe the device."""
        first, again = self.run(1)["seconds"], self.run(1)["seconds"]
        return {
            **self.device,
            "compile_s": first - again,
            "first_s": first,
        }

    def run(self, times: int) -> dict:
        """The seconds of this many batches of images, one after the other."""
        start = time.perf_counter()
        with attention_by(self.attention):
            for _ in range(times):
                images = self.pipe(**self.call).images
        seconds = time.perf_counter() - start
        check_finite(float(np.asarray(images).mean()))
        return {"seconds": seconds}

    def finish(self) -> dict:
        return final_figures()


def tiny_tokenizers() -> Tokenizers:
    with tempfile.TemporaryDirectory(prefix="persongen-jax-") as folder:
        for name, pad_token in zip(("tokenizer", "tokenizer_2"), SDXL_PAD_TOKENS, strict=True):
            write_tiny_tokenizer(Path(folder) / name, pad_token)
        return Tokenizers.from_pretrained(folder)


def image_flops(config: ConfigDict, *, steps: int, guidance: float) -> int:
    """Floating-point operations per image of the base alone: UNet at every step, VAE once."""
    model: Any = abstract_system(config).model
    remove_adapters(model.unet)
    unet, vae = model.unet, model.vae
    factor = vae.vae_scale_factor
    side, channels = config.size // factor, vae.config["latent_channels"]
    widths = [tower.config["hidden_size"] for tower in (model.text_encoder, model.text_encoder_2)]
    pooled = model.text_encoder_2.config["projection_dim"]
    inputs = jax.eval_shape(
        lambda: (
            jnp.zeros((1, side, side, channels)),
            Conditioning(
                {"text": TokenStream(jnp.zeros((1, 77, sum(widths))))},
                jnp.zeros((1, pooled)),
                jnp.zeros((1, 6)),
            ),
        )
    )
    unet_def, unet_state = nnx.split(unet)
    vae_def, vae_state = nnx.split(vae)
    step = jax.jit(lambda s, x, c: nnx.merge(unet_def, s)(x, 0, c))
    decode = jax.jit(lambda s, x: nnx.merge(vae_def, s).decode(x))
    sides = 2 if guidance > 1 else 1
    each = of_function(step, unet_state, *inputs)
    return steps * sides * each + of_function(decode, vae_state, inputs[0])
