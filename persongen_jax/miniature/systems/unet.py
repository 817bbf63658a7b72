"""The miniature's base UNet: text-to-image on cached latents, with frozen text towers.

SDXL's objective (noise prediction) with min-SNR weights (arXiv 2303.09556), more weight on the
face, whose details are the hard part of these images, and an average of the weights (EMA).

In most prompts a name (names.py) stands in place of the class word.

``config.assets``, a folder of shipped weights, takes the place of the other stages' runs. With
``config.go_on`` its UNet is trained further.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch
from data_pipeline.prompts import Tokenizers, split_at_trigger
from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
from persongen_jax.diffusion.objective import min_snr_weights, per_example_loss
from persongen_jax.diffusion.schedule import NoiseSchedule, face_box_mask
from persongen_jax.miniature import sizes
from persongen_jax.miniature.latents import encode_pool
from persongen_jax.miniature.pool import Pool, prompt_ids
from persongen_jax.miniature.systems.base import Drawn, PoolSystem, open_network
from persongen_jax.miniature.systems.clip import text_encoders
from persongen_jax.miniature.systems.names import make_names, replace_class_words
from persongen_jax.miniature.systems.vae import open_vae
from persongen_jax.models.sdxl.parts import StableDiffusionXL
from persongen_jax.models.sdxl.unet import UNet2DConditionModel
from persongen_jax.systems.diffusion import VAE, DiffusionSystem, Step
from persongen_jax.weights.formats.clip import load_vision_tower
from persongen_jax.weights.formats.sdxl.loading import load_sdxl

PART = 1 / 6  # of the prompts not dropped are one of general, background and body alone
NAMED = 0.6  # of the prompts that have a class word
MEASURED = 64  # prompts for measuring the size of word embeddings


class UNet(PoolSystem, DiffusionSystem):
    """Text to image.

    Arrays of an example:
        moments: [h, w, 2 c] float32, the posterior's mean and logvar.
        face_box: [4] float32, in pixels.
        input_ids: [2, n] int32.
        name: [d] float32, the person's; d: the sum of the text towers' widths.
        place: [] int32, of the class word's token; -1: the prompt has no name.
    """

    groups = (("unet/.*", "model"),)
    model: StableDiffusionXL

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.scheduler_config = sizes.SCHEDULER
        self.schedule = NoiseSchedule.from_config(sizes.SCHEDULER)
        self.codec = VAE(self.model.vae)

    @classmethod
    def defaults(cls) -> ConfigDict:
        config = super().defaults()
        config.face_weight = 1.0  # of a latent cell that touches the face box
        config.named = NAMED  # share of the prompts with a class word that have a name there
        config.assets = ""  # a folder of shipped weights; "": other stages' runs
        config.go_on = False  # from the shipped UNet
        return config

    def network(self) -> StableDiffusionXL:
        if self.config.go_on and not self.config.assets:
            raise ValueError("config.go_on: name the folder of shipped weights, config.assets")
        if self.config.assets:
            base = load_sdxl(Path(self.config.assets) / "sdxl").model
            self.moments = encode_pool(base.vae, self.pool, self.shipped)
            if self.config.go_on:
                return base
            vae, towers = base.vae, (base.text_encoder, base.text_encoder_2)
        else:
            vae, self.moments = open_vae(self.work, self.pool)
            towers = text_encoders(open_network(self.work, "clip"))
        unet = UNet2DConditionModel(sizes.unet_config(), rngs=nnx.Rngs(self.config.seed))
        return StableDiffusionXL(unet, vae, *towers)

    @property
    def shipped(self) -> Path:
        """Where the pool as the shipped networks see it is cached."""
        folder = self.work / "shipped"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def source(self) -> Drawn:
        if self.config.assets:
            folder = self.shipped
            vision, _ = load_vision_tower(Path(self.config.assets) / "clip")
        else:
            folder = self.work / "faces"
            vision = open_network(self.work, "faces").vision
        towers = self.model.text_encoder, self.model.text_encoder_2
        prompts = [whole for whole, *_ in self.pool.prompts[:MEASURED]]
        self.names = make_names(vision, towers, self.pool, self.tokenizers, prompts, folder)
        self.places = class_word_places(self.pool, self.tokenizers)
        self.ids = prompt_ids(self.pool, self.tokenizers)
        return super().source()

    def prompt(self, rng: np.random.Generator) -> tuple[int, int]:
        """(index of an image, which of its prompts)."""
        row = int(rng.integers(len(self.pool)))
        return row, int(rng.integers(1, 4)) if rng.random() < PART else 0

    def example(self, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        row, part = self.prompt(rng)
        named = part <= 1 and rng.random() < self.config.named
        return {
            "moments": self.moments[row].astype(np.float32),
            "face_box": self.pool.face_box[row].astype(np.float32),
            "input_ids": self.ids[row, part].astype(np.int32),
            "name": self.names[self.pool.person[row]],
            "place": np.int32(self.places[row] if named else -1),
        }

    def unread(self, cached: bool = False) -> tuple[str, ...]:
        return ("vae/",)

    @property
    def no_prompt(self) -> dict:
        """What a batch holds in place of a dropped condition."""
        return {"input_ids": self.tokenizers.encode(""), "place": -1}

    def drop(self, batch: Batch, drop: jax.Array, own: dict[str, jax.Array] | None = None) -> Batch:
        def without(name, nothing):
            where = drop.reshape(drop.shape + (1,) * (batch[name].ndim - 1))
            return jnp.where(where, nothing, batch[name])

        return {**batch, **{name: without(name, x) for name, x in self.no_prompt.items()}}

    def prompt_embeds(self, model: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        embeds, pooled = model.encode_prompt(batch["input_ids"])
        return replace_class_words(embeds, batch["name"], batch["place"]), pooled

    def condition(self, model: Any, batch: Batch) -> Conditioning:
        embeds, pooled = self.prompt_embeds(model, batch)
        side = sizes.SIDE
        time_ids = jnp.array([side, side, 0, 0, side, side], jnp.float32)
        time_ids = jnp.tile(time_ids, (len(embeds), 1))
        return Conditioning({"text": TokenStream(embeds)}, pooled, time_ids)

    def denoise(
        self, model: Any, x: jax.Array, t: ArrayLike, condition: Any, step: ArrayLike | None = None
    ) -> jax.Array:
        return model.unet(x, t, condition)

    def check_objective(self) -> None:
        super().check_objective()
        for key, value in (("loss_type", "l2"), ("debiased_weights", False), ("x0_weighting", "")):
            if self.config[key] != value:
                raise ValueError(f"config.{key}: the miniature's UNet has a loss of its own")

    def terms(self, model: Any, batch: Batch, step: Step) -> dict[str, jax.Array]:
        error = ((step.pred - step.target) ** 2).mean(-1)
        side = sizes.SIDE
        cells = error.shape[1], error.shape[2]
        face, _ = face_box_mask(batch["face_box"], (side, side), cells)
        loss = ((1 + (self.config.face_weight - 1) * face) * error).mean((1, 2))
        if self.config.min_snr_gamma > 0:
            loss *= min_snr_weights(self.schedule, step.timesteps, self.config.min_snr_gamma)
        return {
            "loss": loss,
            "mse": error.mean((1, 2)),
            "face_mse": per_example_loss(step.pred, step.target, face),
        }


def class_word_places(pool: Pool, tokenizers: Tokenizers) -> np.ndarray:
    """[n]: the index of the class word's token in a prompt that begins with the general caption."""
    before = [split_at_trigger(caption)[0] for caption in pool.captions]
    last = {text: int(tokenizers.encode(text)[0].argmax()) - 1 for text in set(before)}
    return np.array([last[text] for text in before])
