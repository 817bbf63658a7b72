"""UNet2DConditionModel: the denoiser of Stable Diffusion 1.5, SDXL and its refiner.

Built from diffusers' ``config.json`` (every size comes from there), with module paths that mirror
diffusers' keys. SDXL: Podell et al., arXiv 2307.01952, section 2.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from persongen_jax.diffusion.conditioning import Conditioning
from persongen_jax.models.layers import Conv, GroupNorm, LayerOptions
from persongen_jax.models.ops import activation
from persongen_jax.models.sdxl.blocks import UpBlock
from persongen_jax.models.sdxl.encoder import UNetEncoder, block_layers
from persongen_jax.models.sdxl.unet_config import complete_config


class UNet2DConditionModel(UNetEncoder):
    """Predicts noise (or v, or x0) from noisy latents.

    Args:
        config: contents of diffusers' ``unet/config.json``.
        dtype: of the computation; param_dtype: of the stored weights.

    Raises:
        ValueError: a config value that is not implemented, or sizes that do not fit.
    """

    def __init__(
        self,
        config: dict,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        config = complete_config(config)
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config, **kw)
        channels, levels = config["block_out_channels"], len(config["block_out_channels"])
        self.up_blocks = nnx.List([])
        for i, block_type in enumerate(config["up_block_types"]):
            level = levels - 1 - i
            self.up_blocks.append(
                UpBlock(
                    channels[max(level - 1, 0)],
                    channels[level],
                    channels[min(level + 1, levels - 1)],
                    num_layers=config["layers_per_block"][level] + 1,
                    upsample=level > 0,
                    **block_layers(config, block_type, level),
                    **kw,
                )
            )
        self.conv_norm_out = GroupNorm(
            config["norm_num_groups"], channels[0], eps=config["norm_eps"], **kw
        )
        kernel = config["conv_out_kernel"]
        self.conv_out = Conv(
            channels[0], config["out_channels"], kernel, padding=(kernel - 1) // 2, **kw
        )

    def set_remat(self, remat: bool) -> None:
        """Whether the backward pass recomputes activations: less memory, more time."""
        super().set_remat(remat)
        for block in self.up_blocks:
            block.remat = remat

    def __call__(
        self, sample: jax.Array, timesteps: ArrayLike, conditioning: Conditioning
    ) -> jax.Array:
        """Noisy latents [b, h, w, in_channels], timesteps [b] or scalar: [b, h, w, out_channels].

        Runs in ``dtype`` and returns float32. The residuals of the conditioning are added to the
        skips and to the mid block's output (ControlNet, arXiv 2302.05543, section 3.2).
        """
        temb = self.embed_time(timesteps, conditioning, sample.shape[0])
        x, skips = self.encode(self.conv_in(sample), temb, conditioning)
        if conditioning.residuals is not None:
            x, skips = conditioning.residuals.added(x, skips)
        for block in self.up_blocks:
            x = block(x, skips, temb, conditioning.streams)
        x = activation(self.config["act_fn"])(self.conv_norm_out(x))
        return self.conv_out(x).astype(jnp.float32)
