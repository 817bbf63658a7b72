"""The miniature's CLIP: one image tower, two text towers, and an eye for faces.

The image tower is trained against both text towers at once (arXiv 2103.00020, section 2.3), on
whole pictures and their captions, and on face crops to tell people apart (ArcFace, arXiv
1801.07698). Real CLIP learns faces from the names in its captions; these captions have none.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from data_pipeline.transforms import CLIP_MEAN, CLIP_STD, square_face_crop
from persongen_jax.miniature import sizes
from persongen_jax.miniature.fit import fit
from persongen_jax.miniature.losses import arcface_loss
from persongen_jax.miniature.optimizer import make_muon
from persongen_jax.miniature.pool import PEOPLE, Pool, training_prompts
from persongen_jax.models.clip import CLIPTextModel, CLIPVisionModel
from persongen_jax.models.layers import Linear

STEPS, BATCH, FACES, RATE, ADAM_RATE = 1000, 64, 128, 4e-3, 2e-3
PART = 0.3  # of the captions: one of general, background and body alone
SEED = 2


class Trained(nnx.Module):
    """All that is trained together. ``second_projection`` and ``people`` serve training alone."""

    def __init__(self, vocab_size: int, rngs):
        kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": rngs}
        first, second = (sizes.text_config(tower, vocab_size) for tower in (0, 1))
        self.text_encoder = CLIPTextModel(first, with_projection=True, **kw)
        self.text_encoder_2 = CLIPTextModel(second, with_projection=True, **kw)
        self.vision = CLIPVisionModel(sizes.vision_config(), with_projection=True, **kw)
        width = sizes.VISION["hidden_size"]
        self.second_projection = Linear(width, sizes.CLIP_WIDTH, use_bias=False, **kw)
        self.people = nnx.Param(0.05 * jax.random.normal(rngs.params(), (PEOPLE, width)))
        self.logit_scale = nnx.Param(jnp.log(1 / 0.07))


def train_clip(pool: Pool, tokenizers, vocab_size: int, work: Path, steps: int = STEPS):
    """Returns (Trained, cost)."""
    crops = face_crops(pool, work)
    prompts = training_prompts(pool)
    graphdef, params = nnx.split(Trained(vocab_size, nnx.Rngs(SEED)), nnx.Param)
    tx = make_muon(RATE, steps, ADAM_RATE, weight_decay=0.02)

    def loss_of(params, batch):
        images, ids, faces, people = batch
        model = nnx.merge(graphdef, params)
        seen = look(model, jnp.concatenate([images, faces]))
        pooled = seen.pooler_output[: len(images)]
        scale = jnp.exp(jnp.minimum(model.logit_scale[...], jnp.log(100.0)))
        first, right = contrast(
            seen.image_embeds[: len(images)], model.text_encoder(ids[:, 0]).text_embeds, scale
        )
        second, _ = contrast(
            model.second_projection(pooled), model.text_encoder_2(ids[:, 1]).text_embeds, scale
        )
        faces = arcface_loss(seen.pooler_output[len(images) :], model.people[...], people)
        loss = first + second + 0.3 * faces
        return loss, {"text": first, "text_2": second, "faces": faces, "right": right}

    @jax.jit
    def step(state, batch, _):
        params, opt_state = state
        grads, metrics = jax.grad(loss_of, has_aux=True)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), metrics

    def batch_of(rng, _):
        rows = np.sort(rng.integers(0, len(pool), BATCH))
        parts = np.where(rng.random(BATCH) < PART, rng.integers(1, 4, BATCH), 0)
        texts = [prompts[row][part] for row, part in zip(rows, parts, strict=True)]
        ids = np.stack([tokenizers.encode(text) for text in texts])
        faces = np.sort(rng.integers(0, len(pool), FACES))
        return pool.images[rows], ids, crops[faces], pool.person[faces]

    (params, _), cost = fit("clip", work, (params, tx.init(params)), step, batch_of, steps, SEED)
    return nnx.merge(graphdef, params), cost


def look(model: Trained, images):
    """The image tower's output for pictures uint8 [b, s, s, 3]."""
    size = sizes.VISION["image_size"]
    images = images.astype(jnp.float32) / 255
    images = jax.image.resize(images, (len(images), size, size, 3), "cubic").clip(0, 1)
    return model.vision((images - CLIP_MEAN) / CLIP_STD)


def contrast(images, texts, scale):
    """CLIP's symmetric loss over the batch, and how often the right text comes first."""
    images, texts = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (images, texts))
    logits = scale * images @ texts.T
    labels = jnp.arange(len(logits))
    losses = optax.softmax_cross_entropy_with_integer_labels
    loss = (losses(logits, labels) + losses(logits.T, labels)).mean() / 2
    return loss, (logits.argmax(-1) == labels).mean()


def face_crops(pool: Pool, work: Path) -> np.ndarray:
    """[n, SIDE, SIDE, 3] uint8: the crops that methods take of references, kept on disk."""
    from PIL import Image

    path = work / "face_crops.npy"
    if not path.exists():
        crops = np.empty((len(pool), sizes.SIDE, sizes.SIDE, 3), np.uint8)
        for i, (image, box) in enumerate(zip(pool.images, pool.face_box, strict=True)):
            crop = Image.fromarray(square_face_crop(image, box))
            crops[i] = crop.resize((sizes.SIDE, sizes.SIDE), Image.Resampling.BICUBIC)
        np.save(path, crops)
    return np.load(path, mmap_mode="r")
