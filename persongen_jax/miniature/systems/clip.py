"""The miniature's first CLIP: one image tower that also recognises faces, two text towers.

The image tower is trained against both text towers at once (arXiv 2103.00020, section 2.3), on
whole images and their captions, and on face crops to distinguish people (ArcFace, arXiv
1801.07698). Real CLIP learns faces from the names in its captions; these captions have none.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch
from data_pipeline.pictures.transforms import CLIP_MEAN, CLIP_STD, square_face_crop
from persongen_jax.miniature import sizes
from persongen_jax.miniature.losses import Centres, arcface_losses
from persongen_jax.miniature.pool import Pool, cached_array
from persongen_jax.miniature.systems.base import Drawn, PoolSystem, open_network
from persongen_jax.models.encoders.clip import CLIPTextModel, CLIPVisionModel
from persongen_jax.models.layers import Linear

PART = 0.3  # of the captions are one of general, background and body alone


class Towers(nnx.Module):
    """Everything trained together. ``second_projection`` and ``people`` serve training only."""

    def __init__(self, vocab_size: int, people: int, rngs: nnx.Rngs):
        kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": rngs}
        first, second = (sizes.text_config(tower, vocab_size) for tower in (0, 1))
        self.text_encoder = CLIPTextModel(first, with_projection=True, **kw)
        self.text_encoder_2 = CLIPTextModel(second, with_projection=True, **kw)
        self.vision = CLIPVisionModel(sizes.vision_config(), with_projection=True, **kw)
        width = sizes.VISION["hidden_size"]
        self.second_projection = Linear(width, sizes.CLIP_WIDTH, use_bias=False, **kw)
        self.people = Centres(people, width, rngs)
        self.logit_scale = nnx.Param(jnp.log(1 / 0.07))


class Clip(PoolSystem):
    """Images against captions, and faces.

    An image's loss depends on the other images of its batch: ``config.grad_accum`` above 1 reduces
    their number.

    Arrays of an example:
        image: [s, s, 3] uint8.
        input_ids: [2, n] int32.
        faces: [k, s, s, 3] uint8, ``config.faces`` random crops; person: [k] int32, whose.
    """

    @classmethod
    def defaults(cls) -> ConfigDict:
        config = super().defaults()
        config.faces = 2  # face crops per image
        return config

    def network(self) -> Towers:
        vocab_size = len(self.tokenizers.tokenizer)
        return Towers(vocab_size, self.pool.people, nnx.Rngs(self.config.seed))

    def source(self) -> Drawn:
        self.crops = face_crops(self.pool)
        return super().source()

    def text(self, rng: np.random.Generator, row: int) -> str:
        part = rng.integers(1, 4) if rng.random() < PART else 0
        return self.pool.prompts[row][part]

    def example(self, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        row = int(rng.integers(len(self.pool)))
        faces = np.sort(rng.integers(0, len(self.pool), self.config.faces))
        return {
            "image": self.pool.images[row],
            "input_ids": self.tokenizers.encode(self.text(rng, row)),
            "faces": self.crops[faces],
            "person": self.pool.person[faces],
        }

    def losses(self, model: Any, batch: Batch, draws: dict[str, jax.Array]) -> dict[str, jax.Array]:
        seen, faces = self.encode_images_and_faces(model, batch)
        scale = jnp.exp(jnp.minimum(model.logit_scale[...], jnp.log(100.0)))
        first, second = batch["input_ids"][:, 0], batch["input_ids"][:, 1]
        text, right = contrastive_loss(
            seen.image_embeds, model.text_encoder(first).text_embeds, scale
        )
        text_2, _ = contrastive_loss(
            model.second_projection(seen.pooler_output),
            model.text_encoder_2(second).text_embeds,
            scale,
        )
        loss = text + text_2 + 0.3 * faces
        return {"loss": loss, "text": text, "text_2": text_2, "faces": faces, "right": right}

    @staticmethod
    def encode_images_and_faces(model: Towers, batch: Batch) -> tuple[Any, jax.Array]:
        """(the image tower's output for the images, the faces' loss [b]), in one pass."""
        b, k = batch["person"].shape
        crops = batch["faces"].reshape(b * k, *batch["faces"].shape[2:])
        seen = encode_images(model.vision, jnp.concatenate([batch["image"], crops]))
        people = batch["person"].reshape(-1)
        faces = arcface_losses(seen.pooler_output[b:], model.people.embedding[...], people)
        pictures = seen._replace(
            pooler_output=seen.pooler_output[:b], image_embeds=seen.image_embeds[:b]
        )
        return pictures, faces.reshape(b, k).mean(1)


class Faces(Clip):
    """The image tower trained further on faces: the text towers stay frozen.

    An ID encoder has only the image tower's features to distinguish people, and these take far
    longer to learn than captions. The captions' loss is kept, so that CLIP remains CLIP.
    """

    groups = (("(vision|people)/.*", "model"),)

    def network(self) -> Towers:
        return open_network(self.work, "clip")

    def text(self, rng: np.random.Generator, row: int) -> str:
        return self.pool.prompts[row][0]

    def losses(self, model: Any, batch: Batch, draws: dict[str, jax.Array]) -> dict[str, jax.Array]:
        seen, faces = self.encode_images_and_faces(model, batch)
        texts = model.text_encoder(batch["input_ids"][:, 0]).text_embeds
        text, right = contrastive_loss(seen.image_embeds, texts, jnp.exp(model.logit_scale[...]))
        return {"loss": 0.5 * text + faces, "text": text, "faces": faces, "right": right}

    def unread(self, cached: bool = False) -> tuple[str, ...]:
        return "text_encoder_2/", "second_projection/"


def text_encoders(towers: Towers) -> tuple[CLIPTextModel, CLIPTextModel]:
    """CLIP's text towers as in SDXL: the first without projection."""
    first, second = nnx.clone(towers.text_encoder), nnx.clone(towers.text_encoder_2)
    first.text_projection = nnx.data(None)
    return first, second


def encode_images(vision: CLIPVisionModel, images: jax.Array) -> Any:
    """An image tower's output for images uint8 [b, s, s, 3]."""
    size = vision.config["image_size"]
    images = images.astype(jnp.float32) / 255
    images = jax.image.resize(images, (len(images), size, size, 3), "cubic").clip(0, 1)
    return vision((images - CLIP_MEAN) / CLIP_STD)


def contrastive_loss(
    images: jax.Array, texts: jax.Array, scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """CLIP's symmetric loss [b] in the batch, and whether the right text ranks first [b]."""
    images, texts = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (images, texts))
    logits = scale * images @ texts.T
    labels = jnp.arange(len(logits))
    losses = optax.softmax_cross_entropy_with_integer_labels
    both = (losses(logits, labels) + losses(logits.T, labels)) / 2
    return both, (logits.argmax(-1) == labels).astype(jnp.float32)


def face_crops(pool: Pool) -> np.ndarray:
    """[n, SIDE, SIDE, 3] uint8: the reference crops that methods read, cached on disk."""
    from PIL import Image

    def crop_all():
        crops = np.empty((len(pool), sizes.SIDE, sizes.SIDE, 3), np.uint8)
        for i, (image, box) in enumerate(zip(pool.images, pool.face_box, strict=True)):
            crop = Image.fromarray(square_face_crop(image, box))
            crops[i] = crop.resize((sizes.SIDE, sizes.SIDE), Image.Resampling.BICUBIC)
        return crops

    return cached_array(pool.folder / "face_crops.npy", crop_all)
