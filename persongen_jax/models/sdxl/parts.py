"""The four networks of SDXL in one module, and how a prompt becomes what the UNet reads."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from persongen_jax.models.encoders.clip import CLIPTextModel
from persongen_jax.models.layers import LayerOptions, UnusedRngs
from persongen_jax.models.sdxl.unet import UNet2DConditionModel
from persongen_jax.models.sdxl.vae import AutoencoderKL

COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")
LOSS_NETWORKS = "loss_networks"  # the part with what only losses read (persongen_jax/losses/)


class Conditioner(nnx.Module):
    """The networks that turn a prompt, and with a method a reference, into conditioning."""

    def __init__(self, text_encoder: CLIPTextModel, text_encoder_2: CLIPTextModel):
        self.text_encoder = text_encoder
        self.text_encoder_2 = text_encoder_2

    def encode_prompt(self, input_ids: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Token ids [b, 2, n], row 0 from tokenizer, row 1 from tokenizer_2.

        Returns:
            prompt_embeds [b, n, d1 + d2], the towers' penultimate hidden states concatenated, and
            pooled_prompt_embeds [b, p], the second tower's projected embedding.
        """
        first = self.text_encoder(input_ids[:, 0])
        second = self.text_encoder_2(input_ids[:, 1])
        embeds = [first.hidden_states[-2], second.hidden_states[-2]]
        return jnp.concatenate(embeds, axis=-1), second.text_embeds


class StableDiffusionXL(Conditioner):
    """UNet, VAE and both text towers (Podell et al., arXiv 2307.01952).

    A method adds its own parts as attributes. What is trained is not decided here.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModel,
    ):
        super().__init__(text_encoder, text_encoder_2)
        self.unet = unet
        self.vae = vae

    def conditioner(self) -> Conditioner:
        """The same networks without UNet and VAE, including a method's parts, by reference.

        Networks of losses are not among them.
        """
        view = Conditioner(self.text_encoder, self.text_encoder_2)
        for name, part in vars(self).items():
            if isinstance(part, nnx.Module) and name not in ("unet", "vae", LOSS_NETWORKS):
                setattr(view, name, part)
        return view


def build(
    configs: dict[str, dict], name: str, *, dtype: DTypeLike, param_dtype: DTypeLike
) -> Callable[[], Any]:
    """A function that builds component ``name`` from its config.json; to be traced and filled."""

    def make():
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": UnusedRngs()}
        if name == "unet":
            return UNet2DConditionModel(configs[name], **kw)
        if name == "vae":
            return AutoencoderKL(configs[name], **kw)
        return CLIPTextModel(configs[name], with_projection=name == "text_encoder_2", **kw)

    return make
