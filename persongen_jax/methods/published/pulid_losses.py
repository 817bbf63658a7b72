"""PuLID's training beyond the diffusion loss: few-step samples with and without the identity.

Guo et al., arXiv 2404.16022, section 3.2: from the same noise and prompt the picture is sampled in
a few steps twice. Where the text's queries act must stay as it was (alignment losses), and the face
of the sample must be the person's (ID loss). What the paper leaves open, and is chosen here:

- the side without the identity is a constant for the gradient;
- the alignment losses are means over layers, steps, heads and positions;
- the gradient flows through all steps, each of which is computed again for it;
- no guidance, prompts are the captions, and the noise is the diffusion loss's own;
- where the condition is dropped there is no ID loss.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from persongen_jax.diffusion.conditioning import Conditioning
from persongen_jax.diffusion.plan import Plan, make_plan
from persongen_jax.diffusion.samplers import SAMPLERS, final_latents, init_carry, initial_latents
from persongen_jax.diffusion.schedule import NoiseSchedule, signal_and_noise
from persongen_jax.losses.clip import cosine
from persongen_jax.losses.identity import aligned_places, cut
from persongen_jax.losses.pose_readers import make_square, resized
from persongen_jax.models.id_attention import recording


class Weights(NamedTuple):
    """Of the terms; the paper's are 0.6, 0.1 and 1."""

    sem: float
    layout: float
    id: float


Queries = list[tuple[jax.Array, jax.Array]]


def few_steps(schedule: NoiseSchedule, steps: int) -> Plan:
    """DPM++ 2M with trailing timesteps, as PuLID's release samples SDXL-Lightning."""
    signal = schedule.alphas_cumprod.astype("float64")
    betas = [1 - signal[0], *(1 - signal[1:] / signal[:-1])]
    config = {
        "trained_betas": [float(beta) for beta in betas],
        "num_train_timesteps": len(betas),
        "prediction_type": schedule.prediction_type,
    }
    return make_plan(config, steps, "dpmpp_2m", timestep_spacing="trailing")


def sampled(
    denoise: Callable, plan: Plan, noise: jax.Array, conditioning: Conditioning
) -> tuple[jax.Array, Queries]:
    """The latents after all steps [b, h, w, c], and each layer's queries and text keys.

    These are [steps, b, n, heads, d] each. A step is computed again for the gradient, and compiled
    once for all.

    Args:
        denoise: (x, t, conditioning) to the prediction; differentiable.
        noise: [b, h, w, c] standard normal.
    """
    update = SAMPLERS[plan.name]

    def step(carry, i):
        x, memory = carry["latents"], carry["memory"]
        with recording() as queries:
            output = denoise(x, jnp.asarray(plan.timesteps)[i], conditioning)
        latents, memory = update(output.astype(jnp.float32), plan, i, x, memory, None)
        return {"latents": latents, "memory": memory}, queries

    carry = init_carry(plan, initial_latents(plan, noise))
    carry, found = jax.lax.scan(jax.checkpoint(step), carry, jnp.arange(plan.num_steps))
    return final_latents(carry), found


def alignment(ours: Queries, theirs: Queries) -> tuple[jax.Array, jax.Array]:
    """(semantic, layout) alignment losses [b].

    Args:
        ours, theirs: (queries [steps, b, n, heads, d], text keys [steps, b, m, heads, d]) of each
            layer; no gradient flows to ``theirs``.
    """
    sem, layout = [], []
    for (q, k), (q0, k0) in zip(ours, jax.lax.stop_gradient(theirs), strict=True):
        sem.append(_squared(_responses(q, k) - _responses(q0, k0)))
        layout.append(_squared(q.astype(jnp.float32) - q0.astype(jnp.float32)))
    return jnp.stack(sem).mean(0), jnp.stack(layout).mean(0)


def _responses(q, k):
    """What each word of the text finds among the queries: softmax(K Q^T / sqrt(d)) Q."""
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    return jax.vmap(jax.nn.dot_product_attention)(k, q, q)


def _squared(x):
    """The mean square of each example, [steps, b, ...] to [b]."""
    return jnp.square(x).mean((0, *range(2, x.ndim)))


def face_similarity_loss(
    recogniser: Any,
    detector: Any,
    images: jax.Array,
    wanted: jax.Array,
    counts: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """1 - cos to ``wanted`` [b, d] of the faces that the detector sees; and where it sees one.

    Both are [b]. The places are constants for the gradient, which flows through the pixels.

    Args:
        recogniser: reads aligned faces [b, s, s, 3] in [-1, 1].
        detector: a KeypointNet.
        images: [b, h, w, 3] in 0..1.
        counts: [b] bool, which images were sampled with the identity; None: all.
    """
    side = detector.config["image_size"]
    square, shift = make_square(images, "edge")
    seen = detector(2 * resized(square, (side, side)) - 1)
    marks = jax.lax.stop_gradient(seen.landmarks) * square.shape[1]
    marks = marks - jnp.array(shift, jnp.float32)
    places, large = aligned_places(marks, recogniser.config["input_size"])
    found = recogniser(2 * cut(images, places) - 1)
    there = large & (jax.lax.stop_gradient(seen.present) > 0)
    there = there if counts is None else there & counts
    return jnp.where(there, 1 - cosine(found, jax.lax.stop_gradient(wanted)), 0), there


def few_step_terms(
    denoise: Callable,
    conditioning: Conditioning,
    branch: str,
    plan: Plan,
    weights: Weights,
    step: Any,
    judge: Callable | None,
) -> dict[str, jax.Array]:
    """{"loss_sem", "loss_layout", "loss_id": [b]}, weighted, and "faces_found" [b].

    Args:
        conditioning: with the identity, which is the stream ``branch``.
        step: systems.diffusion.Step.
        judge: maps images to face_similarity_loss's; None: no ID loss.
    """
    alpha, sigma = signal_and_noise(step.schedule, step.timesteps)
    noise = (step.noisy - alpha * step.latents) / sigma
    rest = {name: s for name, s in conditioning.streams.items() if name != branch}
    plain = jax.lax.stop_gradient(replace(conditioning, streams=rest))
    ours, with_it = sampled(denoise, plan, noise, conditioning)
    _, without = sampled(denoise, plan, noise, plain)
    sem, layout = alignment(with_it, without)
    terms = {"loss_sem": weights.sem * sem, "loss_layout": weights.layout * layout}
    if judge is not None:
        lost, found = judge(step.decode(ours))
        terms["loss_id"] = weights.id * lost
        terms["faces_found"] = found.astype(jnp.float32)
    return terms
