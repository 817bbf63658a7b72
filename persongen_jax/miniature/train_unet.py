"""The miniature's base UNet: text-to-image on cached latents, frozen text towers.

SDXL's objective (noise prediction) with min-SNR weights (arXiv 2303.09556), more weight on the
face, whose details are the hard part of these pictures, and an average of the weights (EMA).
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from persongen_jax import diffusion
from persongen_jax.conditioning import Conditioning, TokenStream
from persongen_jax.miniature import sizes
from persongen_jax.miniature.fit import fit
from persongen_jax.miniature.optimizer import make_muon
from persongen_jax.miniature.pool import Pool
from persongen_jax.models.unet import UNet2DConditionModel
from persongen_jax.objective import min_snr_weights
from persongen_jax.prompts import join_parts, split_at_trigger

STEPS, BATCH, RATE, ADAM_RATE = 2000, 64, 5e-3, 2e-3
FACE_WEIGHT = 3.0  # of a latent cell that the face box touches
MIN_SNR = 5.0
DROP = 0.1  # of the prompts: replaced by the empty one
PART = 0.15  # of the prompts: one of general, background and body alone
EMA = 0.999
SEED = 5


def cache_latents(vae, pool: Pool, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Scaled latents' means and standard deviations [n, h, w, c] float16, kept on disk."""
    paths = work / "latents_mean.npy", work / "latents_std.npy"
    if not all(path.exists() for path in paths):
        graphdef, params = nnx.split(vae)
        scale = vae.config["scaling_factor"]

        @jax.jit
        def encode(params, images):
            moments = nnx.merge(graphdef, params).encode(images.astype(jnp.float32) / 127.5 - 1)
            std = jnp.exp(0.5 * moments.logvar)
            return tuple((scale * x).astype(jnp.float16) for x in (moments.mean, std))

        parts = [encode(params, pool.images[i : i + 100]) for i in range(0, len(pool), 100)]
        for path, arrays in zip(paths, zip(*parts, strict=True), strict=True):
            np.save(path, np.concatenate(arrays))
    return tuple(np.load(path) for path in paths)


def training_prompts(pool: Pool) -> list[tuple[str, str, str, str]]:
    """Per picture: the whole prompt without trigger, and its three parts."""
    prompts = []
    for general, background, body in zip(pool.captions, pool.backgrounds, pool.bodies, strict=True):
        general = "".join(split_at_trigger(general))
        prompts.append((join_parts(general, background, body), general, background, body))
    return prompts


def train_unet(pool, vae, conditioner, tokenizers, work: Path, steps: int = STEPS):
    """``conditioner``: models.sdxl.Conditioner, frozen. Returns (UNet, config, cost)."""
    means, stds = cache_latents(vae, pool, work)
    prompts = training_prompts(pool)
    config = sizes.unet_config()
    schedule = diffusion.NoiseSchedule.from_config(sizes.SCHEDULER)
    unet = UNet2DConditionModel(config, rngs=nnx.Rngs(SEED))
    graphdef, params = nnx.split(unet, nnx.Param)
    text_graphdef, text_params = nnx.split(conditioner)
    tx = make_muon(RATE, steps, ADAM_RATE, weight_decay=0.01)
    time_ids = jnp.array([sizes.SIDE, sizes.SIDE, 0, 0, sizes.SIDE, sizes.SIDE], jnp.float32)

    def loss_of(params, text_params, batch, number):
        mean, std, box, ids = batch
        keys = jax.random.split(jax.random.fold_in(jax.random.key(SEED), number), 3)
        latents = mean + std * jax.random.normal(keys[0], mean.shape)
        noise = jax.random.normal(keys[1], mean.shape)
        timesteps = jax.random.randint(keys[2], mean.shape[:1], 0, schedule.num_train_timesteps)
        embeds, pooled = nnx.merge(text_graphdef, text_params).encode_prompt(ids)
        conditioning = Conditioning(
            {"text": TokenStream(embeds)}, pooled, jnp.tile(time_ids, (len(mean), 1))
        )
        noisy = diffusion.add_noise(schedule, latents, noise, timesteps)
        predicted = nnx.merge(graphdef, params)(noisy, timesteps, conditioning)
        face, _ = diffusion.face_box_mask(box, (sizes.SIDE, sizes.SIDE), mean.shape[1:3])
        error = ((predicted - noise) ** 2).mean(-1)
        loss = ((1 + (FACE_WEIGHT - 1) * face) * error).mean((1, 2))
        return (loss * min_snr_weights(schedule, timesteps, MIN_SNR)).mean(), {"mse": error.mean()}

    @jax.jit
    def update(state, text_params, batch, number):
        params, average, opt_state = state
        grads, metrics = jax.grad(loss_of, has_aux=True)(params, text_params, batch, number)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(EMA, (1 + number) / (10 + number))
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
        return (params, average, opt_state), metrics

    def batch_of(rng, _):
        rows = np.sort(rng.integers(0, len(pool), BATCH))
        kinds = rng.random(BATCH)
        texts = []
        for row, kind in zip(rows, kinds, strict=True):
            part = rng.integers(1, 4) if kind < DROP + PART else 0
            texts.append("" if kind < DROP else prompts[row][part])
        ids = np.stack([tokenizers.encode(text) for text in texts])
        moments = (array[rows].astype(np.float32) for array in (means, stds))
        return *moments, pool.face_box[rows].astype(np.float32), ids

    state = params, params, tx.init(params)
    (_, average, _), cost = fit(
        "unet", work, state, lambda s, b, n: update(s, text_params, b, n), batch_of, steps, SEED
    )
    return nnx.merge(graphdef, average), config, cost
