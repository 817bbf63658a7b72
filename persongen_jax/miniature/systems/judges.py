"""The judges: networks of other architectures and seeds, which no method reads or is trained by.

Every figure is measured by these; the methods' inputs and losses use the first nets.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.ndimage import uniform_filter

from data_pipeline.examples.fields import Batch
from persongen_jax.miniature import sizes
from persongen_jax.miniature.systems.base import PoolSystem
from persongen_jax.miniature.systems.clip import contrastive_loss, encode_images
from persongen_jax.miniature.systems.face_net import FaceNet
from persongen_jax.miniature.systems.keypoint_net import Keypoints
from persongen_jax.models.encoders.clip import CLIPTextModel, CLIPVisionModel

PART = 0.5  # of the captions are one of general, background and body alone: what judges ask about
BLURRED = 0.3  # of the images are softened a little, as generated ones are


class FaceJudge(FaceNet):
    """Distinguishes people."""

    @property
    def architecture(self) -> dict:
        return sizes.FACE_JUDGE


class KeypointJudge(Keypoints):
    """Finds one person."""

    @property
    def architecture(self) -> dict:
        return sizes.KEYPOINT_JUDGE


class JudgeTowers(nnx.Module):
    """A CLIP of one text tower, with whole images only."""

    def __init__(self, vocab_size: int, rngs: nnx.Rngs):
        kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": rngs}
        text = sizes.text_config(1, vocab_size, sizes.TEXT_JUDGE_LAYERS)
        vision = sizes.vision_config(sizes.VISION_JUDGE)
        self.text_encoder = CLIPTextModel(text, with_projection=True, **kw)
        self.vision = CLIPVisionModel(vision, with_projection=True, **kw)
        self.logit_scale = nnx.Param(jnp.log(1 / 0.07))


class ClipJudge(PoolSystem):
    """Images against captions (arXiv 2103.00020, section 2.3).

    Arrays of an example:
        image: [s, s, 3] uint8.
        input_ids: [n] int32.
    """

    def network(self) -> JudgeTowers:
        return JudgeTowers(len(self.tokenizers.tokenizer), nnx.Rngs(self.config.seed))

    def example(self, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        row = int(rng.integers(len(self.pool)))
        part = int(rng.integers(1, 4)) if rng.random() < PART else 0
        image = self.pool.images[row]
        if rng.random() < BLURRED:
            image = uniform_filter(image, (2, 2, 1), mode="nearest")
        return {
            "image": image,
            "input_ids": self.tokenizers.encode(self.pool.prompts[row][part])[1],
        }

    def losses(self, model: Any, batch: Batch, draws: dict[str, jax.Array]) -> dict[str, jax.Array]:
        scale = jnp.exp(jnp.minimum(model.logit_scale[...], jnp.log(100.0)))
        seen = encode_images(model.vision, batch["image"]).image_embeds
        loss, right = contrastive_loss(
            seen, model.text_encoder(batch["input_ids"]).text_embeds, scale
        )
        return {"loss": loss, "right": right}
