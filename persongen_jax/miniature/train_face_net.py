"""The miniature's face recognisers: IResNet with ArcFace's loss on aligned crops.

Face-Sim's own net is trained with a seed of its own, so that no method has seen its features.
"""

from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

from data_pipeline.align import align_faces
from persongen_jax.miniature import sizes
from persongen_jax.miniature.fit import fit
from persongen_jax.miniature.losses import arcface_loss
from persongen_jax.miniature.optimizer import make_muon
from persongen_jax.miniature.pool import PEOPLE, Pool
from persongen_jax.models.iresnet import IResNet, normalise_faces

STEPS, BATCH, RATE, ADAM_RATE = 450, 128, 5e-3, 3e-3
JITTER = 0.5  # pixels of the picture: detectors do not find landmarks exactly


def train_face_net(pool: Pool, work: Path, seed: int, steps: int = STEPS):
    """Returns (IResNet, cost)."""
    crops = aligned_crops(pool, work)
    config = sizes.FACE_NET
    net = IResNet(config, rngs=nnx.Rngs(seed))
    graphdef, params, stats = nnx.split(net, nnx.Param, nnx.BatchStat)
    shape = (PEOPLE, config["embedding_dim"])
    params = {"net": params, "people": 0.05 * jax.random.normal(jax.random.key(seed), shape)}
    tx = make_muon(RATE, steps, ADAM_RATE, weight_decay=1e-3)

    def loss_of(params, stats, crops, people):
        net = nnx.merge(graphdef, params["net"], stats, copy=True)
        embeddings = net(normalise_faces(crops), use_running_average=False)
        return arcface_loss(embeddings, params["people"], people), nnx.state(net, nnx.BatchStat)

    @jax.jit
    def step(state, batch, _):
        params, stats, opt_state = state
        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params, stats, *batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), stats, opt_state), {"loss": loss}

    def batch_of(rng, _):
        rows = np.sort(rng.integers(0, len(pool), BATCH))
        return crops[rows], pool.person[rows]

    state = params, stats, tx.init(params)
    (params, stats, _), cost = fit(f"face_net_{seed}", work, state, step, batch_of, steps, seed)
    return nnx.merge(graphdef, params["net"], stats), cost


def aligned_crops(pool: Pool, work: Path) -> np.ndarray:
    """[n, s, s, 3] uint8 by the true landmarks, jittered; kept on disk."""
    path = work / "aligned_crops.npy"
    if not path.exists():
        size = sizes.FACE_NET["input_size"]
        noise = np.random.default_rng(0).normal(0, JITTER, pool.landmarks.shape)
        parts = [
            align_faces(pool.images[i : i + 1000], (pool.landmarks + noise)[i : i + 1000], size)
            for i in range(0, len(pool), 1000)
        ]
        np.save(path, np.concatenate(parts))
    return np.load(path, mmap_mode="r")
