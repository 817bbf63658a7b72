"""A diffusion model on pixels, conditioned on attributes and trained from scratch.

DDPM (Ho et al., arXiv 2006.11239) with classifier-free guidance (Ho and Salimans, arXiv 2207.12598)
on images with attributes, as the seed project face-diffusion does on MNIST and CelebA:

    python -m persongen_jax.train --config configs/attributes/digits.py
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from data_pipeline.attributes.field import Attributes
from data_pipeline.examples.fields import Batch
from persongen_jax.diffusion.options import SamplingOptions
from persongen_jax.diffusion.plan import Plan
from persongen_jax.diffusion.schedule import NoiseSchedule
from persongen_jax.diffusion.scheduler_config import check_choice, with_zero_snr
from persongen_jax.models.ddpm.unet2d import UNet2DModel
from persongen_jax.models.layers import Linear
from persongen_jax.systems.diffusion import Cases, DiffusionSystem, Pixels
from persongen_jax.systems.on_attributes import AttributeSystem

CONDITIONING = ("input", "blocks", "none")
HIDE = 16  # a purpose of random keys, next to those of systems/diffusion.py
SEEN, UNSEEN = "seen", "unseen"  # validation sets
CLIPPING = ("ddim", "ddpm", "DDIMScheduler", "DDPMScheduler")  # samplers that clip x0


class AttributeUNet(nnx.Module):
    """A UNet2DModel conditioned on attributes.

    Args:
        config: diffusers' config of the UNet, without the conditioning.
        attributes: K.
        conditioning: "input": ``embedding``, a linear map to ``width`` numbers, which become
            additional channels of the noisy image, equal for all pixels (the seed's code);
            "blocks": two linear layers to the width of the timestep embedding, which they are added
            to, and so reach every block (the seed's figure); "none": no conditioning.
        width: of "input".
        null: whether there is a learned embedding for "all attributes unknown".
    """

    def __init__(
        self,
        config: dict,
        attributes: int,
        *,
        conditioning: str,
        width: int,
        null: bool,
        rngs: nnx.Rngs,
        **kw: Any,
    ):
        check_choice("config.conditioning", conditioning, CONDITIONING)
        self.conditioning = conditioning
        channels, layers = config["in_channels"], {"rngs": rngs, **_DTYPES, **kw}
        if conditioning == "none":
            self.unet = UNet2DModel(config, rngs=rngs, **kw)
            return
        if conditioning == "input":
            self.unet = UNet2DModel({**config, "in_channels": channels + width}, rngs=rngs, **kw)
            self.embedding: Any = Linear(attributes, width, **layers)
        else:
            self.unet = UNet2DModel({**config, "class_embed_type": "identity"}, rngs=rngs, **kw)
            width = 4 * config["block_out_channels"][0]
            # Whether an attribute is known is an input separate from its value.
            self.embedding = nnx.List(
                [Linear(2 * attributes, width, **layers), Linear(width, width, **layers)]
            )
        self.null = nnx.data(None)
        if null:
            self.null = nnx.Param(jnp.zeros((width,), jnp.float32))

    def embed(self, attributes: jax.Array, known: jax.Array) -> jax.Array:
        """Embeddings [b, e] of values in 0..1 and of whether they are known, [b, K] each.

        An unknown attribute is 0, between -1 (no) and 1 (yes). If none is known, the embedding is
        the learned null embedding.
        """
        signed = (2 * attributes - 1) * known
        if self.conditioning == "input":
            embedded = self.embedding(signed)
        else:
            first, second = self.embedding
            embedded = second(jax.nn.silu(first(jnp.concatenate([signed, known], axis=-1))))
        if self.null is None:
            return embedded
        return jnp.where(known.any(-1, keepdims=True), embedded, self.null[...])

    def __call__(self, x: jax.Array, t: ArrayLike, embedded: Any) -> jax.Array:
        """The prediction at images ``x`` [b, h, w, c]; ``embedded`` [b, e], None for "none"."""
        if self.conditioning == "input":
            b, h, w, _ = x.shape
            plane = jnp.broadcast_to(embedded[:, None, None, :], (b, h, w, embedded.shape[-1]))
            return self.unet(jnp.concatenate([x, plane.astype(x.dtype)], axis=-1), t)
        return self.unet(x, t, embedded)


_DTYPES = {"dtype": jnp.float32, "param_dtype": jnp.float32}


class Ddpm(AttributeSystem, DiffusionSystem):
    """Generates images from attributes.

    Raises:
        ValueError: data or a size that cannot be used.
    """

    model: AttributeUNet
    fields: tuple[Attributes]

    def __init__(self, config: ConfigDict):
        self.config = config
        for name in ("drop_prob", "hide_prob"):
            if not 0 <= config[name] <= 1:
                raise ValueError(f"config.{name}={config[name]:g}: a probability is 0 to 1")
        if SamplingOptions.of_validation(config).guides and not can_guide(config):
            raise ValueError(
                f"config.validation_guidance={config.validation_guidance:g} needs a model that was "
                "also trained without its condition; set it to 0, or config.drop_prob above 0"
            )
        if config.validation_images < 1:
            raise ValueError(f"config.validation_images={config.validation_images}: at least 1")
        self.fields = (Attributes(self.vocabulary),)
        height, _, channels = self.described.shape
        self.codec = Pixels(channels)
        self.scheduler_config = scheduler_config_of(config)
        self.schedule = NoiseSchedule.from_config(self.scheduler_config)
        self.model = AttributeUNet(
            unet_config_of(config, height, channels),
            len(self.vocabulary),
            conditioning=config.conditioning,
            width=config.embedding_width,
            null=config.drop_prob > 0,
            rngs=nnx.Rngs(config.seed),
            dtype=jnp.dtype(config.dtype),
        )

    @classmethod
    def defaults(cls) -> ConfigDict:
        config = super().defaults()
        # The network: diffusers' UNet2DModel. One level per number of channels; each level halves
        # the sides.
        config.block_out_channels = (32, 32, 32, 64)
        config.attention = (False, True, True, True)  # per level
        config.layers_per_block = 2
        config.attention_head_dim = 8
        config.norm_num_groups = 32

        # Conditioning: "input", "blocks" or "none", see AttributeUNet. An example loses all
        # attributes with probability ``drop_prob`` and some of them with ``hide_prob``, so that a
        # request may name only a few.
        config.conditioning = "blocks"
        config.embedding_width = 5  # for "input"
        config.hide_prob = 0.3

        config.lr_model = 1e-3
        config.beta_schedule = "squaredcos_cap_v2"  # or "linear"
        config.prediction_type = "epsilon"  # or "v_prediction"

        # Validation. The judge is a run of configs/attributes/classifier.py.
        config.validation_images = 64  # of each set
        config.classifier = ""
        return config

    @property
    def label(self) -> str:
        return "unconditional" if self.config.conditioning == "none" else "ddpm"

    @property
    def attributes(self) -> Attributes:
        return self.fields[0]

    # ---- a step ----

    def draw(self, key_of: Callable[[int], jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """DiffusionSystem's, and "hidden" [b, K] bool, the attributes that the model does not see.

        An example hides a random fraction of them, from none to all, and a class as a whole.
        """
        draws = super().draw(key_of, batch)
        if self.config.hide_prob > 0:
            some, share, each = jax.random.split(key_of(HIDE), 3)
            units, b = self.vocabulary.units, len(batch["attributes"])
            hides = jax.random.bernoulli(some, self.config.hide_prob, (b, 1))
            chance = jax.random.uniform(share, (b, 1))
            hidden = jax.random.uniform(each, (b, max(units) + 1)) < chance
            draws["hidden"] = hides & hidden[:, units]
        return draws

    def losses(self, model: Any, batch: Batch, draws: dict[str, jax.Array]) -> dict[str, jax.Array]:
        if "hidden" in draws:
            known = jnp.where(draws["hidden"], 0, batch["attributes_known"])
            batch = {**batch, "attributes_known": known}
        return super().losses(model, batch, draws)

    def condition(self, model: Any, batch: Batch) -> jax.Array | None:
        if self.config.conditioning == "none":
            return None
        return model.embed(batch["attributes"], batch["attributes_known"])

    def denoise(
        self, model: Any, x: jax.Array, t: ArrayLike, condition: Any, step: ArrayLike | None = None
    ) -> jax.Array:
        return model(x, t, condition)

    # ---- sampling ----

    def plan(self, options: SamplingOptions) -> Plan:
        """DiffusionSystem's. Samplers that do not clip start where some signal is left.

        At the last timestep a cosine schedule leaves so little signal that the smallest error of a
        noise prediction becomes an error as large as the image.
        """
        if options.scheduler not in (None, *CLIPPING) and not self.config.zero_snr:
            own = {"timestep_spacing": "leading", **(options.scheduler_options or {})}
            options = replace(options, scheduler_options=own)
        return super().plan(options)

    # ---- validation ----

    @classmethod
    def validation_sets_of(cls, config: ConfigDict) -> tuple[str, ...]:
        return (SEEN, UNSEEN) if config.data == "drawn_faces" else (SEEN,)

    def cases(self, name: str) -> Cases:
        """Combinations of attributes in the training set, or those absent from it; all are known.

        The real images are those of ``test`` with these combinations.
        """
        data, n = self.data, self.config.validation_images
        rng = np.random.default_rng(self.config.validation_seed)
        if name == UNSEEN:
            if data.unseen is None or not len(data.unseen):
                raise ValueError(
                    "config.attributes: with so few, the training set has every combination, none "
                    "is left to validate as unseen; read more of them, or set "
                    "config.validation_every=0"
                )
            values = data.unseen[rng.permutation(np.arange(n) % len(data.unseen))]
        else:
            values = data.train.values[np.sort(rng.integers(len(data.train), size=n))]
        describe = data.vocabulary.describe
        owners = [describe(row) for row in values]
        unseen = set() if data.unseen is None else set(map(tuple, data.unseen.tolist()))
        real: dict[str, list] = {}
        for i, row in enumerate(data.test.values):
            if (tuple(row.tolist()) in unseen) == (name == UNSEEN):
                real.setdefault(describe(row), []).append(i)
        # Sorted, so that each row of a sheet shows one combination.
        order = np.argsort(owners, kind="stable")
        return Cases(
            self.attributes.of_requests([owners[i] for i in order]),
            [owners[i] for i in order],
            {owner: _Pictures(data.test.images, rows) for owner, rows in real.items()},
            [owners[i] for i in order],
        )


class _Pictures(Sequence):
    """Selected images of a sequence, read on access."""

    def __init__(self, images, rows):
        self._images, self._rows = images, rows

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self._images[row] for row in self._rows[place]]
        return self._images[self._rows[place]]


def can_guide(config: ConfigDict) -> bool:
    """Whether the model also predicts without a condition, and has one."""
    return config.conditioning != "none" and config.drop_prob > 0


def scheduler_config_of(config: ConfigDict) -> dict:
    """diffusers' scheduler_config.json for a run: for training noise and for samplers."""
    scheduler_config = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": config.beta_schedule,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "prediction_type": config.prediction_type,
        # Pixels end in [-1, 1], and guidance pushes them out. With clipping, but without adapting
        # the noise to it, DDIM generated other digits than requested four times out of five.
        "clip_sample": True,
        "use_clipped_model_output": True,
        "timestep_spacing": "trailing",
    }
    return with_zero_snr(scheduler_config) if config.zero_snr else scheduler_config


def unet_config_of(config: ConfigDict, size: int, channels: int) -> dict:
    """The UNet2DModel's config.json.

    Raises:
        ValueError: levels that do not fit each other or the size.
    """
    levels, attention = len(config.block_out_channels), tuple(config.attention)
    if len(attention) != levels:
        raise ValueError(
            f"config.attention has {len(attention)} entries for {levels} block_out_channels; give "
            "True or False for each"
        )
    if size % 2 ** (levels - 1):
        raise ValueError(
            f"images of {size} pixels cannot be halved {levels - 1} times; choose config.size, "
            "or fewer config.block_out_channels"
        )
    return {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": config.layers_per_block,
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": [("Attn" if a else "") + "DownBlock2D" for a in attention],
        "up_block_types": [("Attn" if a else "") + "UpBlock2D" for a in attention[::-1]],
        "attention_head_dim": config.attention_head_dim,
        "norm_num_groups": config.norm_num_groups,
    }
