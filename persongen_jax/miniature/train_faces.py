"""CLIP's eye for faces, trained further: the text towers stay as they are.

What the image tower tells people apart by is all that an ID encoder has to work with, and it takes
far longer to learn than captions do. The captions' loss goes along, so that CLIP remains CLIP.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from persongen_jax.miniature.fit import fit
from persongen_jax.miniature.losses import arcface_loss
from persongen_jax.miniature.optimizer import make_muon
from persongen_jax.miniature.pool import Pool, training_prompts
from persongen_jax.miniature.train_clip import Trained, contrast, face_crops, look

STEPS, BATCH, FACES, RATE, ADAM_RATE = 900, 32, 192, 4e-3, 2e-3
FROZEN = ("text_encoder", "text_encoder_2", "second_projection", "logit_scale")
SEED = 6


def train_faces(clip: Trained, pool: Pool, tokenizers, work: Path, steps: int = STEPS):
    """Returns (Trained, cost): ``clip`` with another image tower."""
    crops, prompts = face_crops(pool, work), training_prompts(pool)
    graphdef, frozen, params = nnx.split(clip, lambda path, _: path[0] in FROZEN, ...)
    tx = make_muon(RATE, steps, ADAM_RATE, weight_decay=0.01)

    def loss_of(params, frozen, batch):
        images, ids, faces, people = batch
        model = nnx.merge(graphdef, frozen, params)
        seen = look(model, jnp.concatenate([images, faces]))
        scale = jnp.exp(model.logit_scale[...])
        text = model.text_encoder(ids[:, 0]).text_embeds
        text, right = contrast(seen.image_embeds[: len(images)], text, scale)
        faces = arcface_loss(seen.pooler_output[len(images) :], model.people[...], people)
        return 0.5 * text + faces, {"text": text, "faces": faces, "right": right}

    @jax.jit
    def update(state, frozen, batch):
        params, opt_state = state
        grads, metrics = jax.grad(loss_of, has_aux=True)(params, frozen, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), metrics

    def batch_of(rng, _):
        rows = np.sort(rng.integers(0, len(pool), BATCH))
        ids = np.stack([tokenizers.encode(prompts[row][0]) for row in rows])
        faces = np.sort(rng.integers(0, len(pool), FACES))
        return pool.images[rows], ids, crops[faces], pool.person[faces]

    state = params, tx.init(params)
    (params, _), cost = fit(
        "faces", work, state, lambda s, b, _: update(s, frozen, b), batch_of, steps, SEED
    )
    return nnx.merge(graphdef, frozen, params), cost
