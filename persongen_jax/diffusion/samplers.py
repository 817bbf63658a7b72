"""Samplers: from Gaussian noise to latents, all in one compiled loop.

`plan.make_plan` turns a diffusers scheduler_config.json into a `Plan`: every number that the loop
needs, computed once on the host. `run_steps` then executes it; `sample_steps` does so around the
denoiser of a method, with classifier-free guidance.

    plan = make_plan(config, 30, "dpmpp_2m", use_karras_sigmas=True)
    carry = init_carry(plan, initial_latents(plan, noise))
    carry = run_steps(plan, model, carry, key, 0, plan.num_steps)
    latents = final_latents(carry)

SDXL-Lightning (2402.13929) in four steps: `make_plan(config, 4, "euler",
timestep_spacing="trailing")` with a model that applies no guidance.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from persongen_jax.diffusion.conditioning import Guidance, deinterleave, interleave
from persongen_jax.diffusion.plan import Plan, Step
from persongen_jax.diffusion.schedule import x0_and_eps

Memory = tuple[jax.Array, ...]

# ---- The samplers ------------------------------------------------------------------------------
# Each: (model_output, plan, i, latents, memory, noise) -> (latents, memory), float32 throughout.


def ddpm_step(
    model_output: jax.Array,
    plan: Plan,
    i: Step,
    latents: jax.Array,
    memory: Memory,
    noise: jax.Array,
) -> tuple[jax.Array, Memory]:
    """Samples the posterior q(x_{t-1} | x_t, x_0) (Ho et al. 2006.11239, eq. 6 and 7)."""
    c = plan.at(i)
    x0, _ = x0_and_eps(plan.prediction_type, latents, model_output, c["alpha_t"], c["sigma_t"])
    x0 = jnp.clip(x0, -c["clip_range"], c["clip_range"])
    mean = c["x0_weight"] * x0 + c["xt_weight"] * latents
    return mean + c["noise_std"] * noise, memory


def ddim_step(
    model_output: jax.Array,
    plan: Plan,
    i: Step,
    latents: jax.Array,
    memory: Memory,
    noise: jax.Array | None,
) -> tuple[jax.Array, Memory]:
    """Predicted x_0, plus the direction to x_t, plus noise (Song et al. 2010.02502, eq. 12)."""
    c = plan.at(i)
    x0, eps = x0_and_eps(plan.prediction_type, latents, model_output, c["alpha_t"], c["sigma_t"])
    x0 = jnp.clip(x0, -c["clip_range"], c["clip_range"])
    if "of_clipped" in c:  # the noise that is consistent with the clipped x_0
        eps = (latents - c["alpha_t"] * x0) / c["sigma_t"]
    latents = c["x0_weight"] * x0 + c["eps_weight"] * eps
    if noise is not None:
        latents = latents + c["noise_std"] * noise
    return latents, memory


def euler_step(
    model_output: jax.Array,
    plan: Plan,
    i: Step,
    latents: jax.Array,
    memory: Memory,
    noise: jax.Array | None,
) -> tuple[jax.Array, Memory]:
    """dx/dsigma = (x - D(x)) / sigma, one Euler step (Karras et al. 2206.00364, alg. 1)."""
    c = plan.at(i)
    denoised, _ = x0_and_eps(
        plan.prediction_type, latents * c["alpha_t"], model_output, c["alpha_t"], c["sigma_t"]
    )
    derivative = (latents - denoised) / c["sigma"]
    return latents + (c["sigma_down"] - c["sigma"]) * derivative, memory


def euler_ancestral_step(
    model_output: jax.Array,
    plan: Plan,
    i: Step,
    latents: jax.Array,
    memory: Memory,
    noise: jax.Array,
) -> tuple[jax.Array, Memory]:
    """An Euler step to below the next sigma, then noise back up to it (k-diffusion)."""
    latents, memory = euler_step(model_output, plan, i, latents, memory, noise)
    return latents + plan.at(i)["sigma_up"] * noise, memory


def dpmpp_2m_step(
    model_output: jax.Array,
    plan: Plan,
    i: Step,
    latents: jax.Array,
    memory: Memory,
    noise: jax.Array | None,
) -> tuple[jax.Array, Memory]:
    """Second-order multistep data prediction (Lu et al. 2211.01095, alg. 2).

    `memory` is (previous x0, 1 once there is one): a run that begins in the middle of a plan takes
    its first step at first order.
    """
    c = plan.at(i)
    x0, _ = x0_and_eps(plan.prediction_type, latents, model_output, c["alpha_t"], c["sigma_t"])
    return _extrapolated(c, x0, latents, memory)


def _extrapolated(c: dict, x0: jax.Array, latents: jax.Array, memory: Memory):
    """A step towards the data predicted from this x0 and the one before."""
    previous_x0, has_previous = memory
    data = x0 + has_previous * c["extrapolation"] * (x0 - previous_x0)
    latents = c["xt_weight"] * latents + c["data_weight"] * data
    return latents, (x0, jnp.ones_like(has_previous))


def k_dpmpp_2m_step(
    model_output: jax.Array,
    plan: Plan,
    i: Step,
    latents: jax.Array,
    memory: Memory,
    noise: jax.Array | None,
) -> tuple[jax.Array, Memory]:
    """The same on latents x_0 + sigma eps, as k-diffusion's sample_dpmpp_2m."""
    c = plan.at(i)
    scaled = latents * c["alpha_t"]
    x0, _ = x0_and_eps(plan.prediction_type, scaled, model_output, c["alpha_t"], c["sigma_t"])
    return _extrapolated(c, x0, latents, memory)


def k_dpmpp_sde_step(
    model_output: jax.Array,
    plan: Plan,
    i: Step,
    latents: jax.Array,
    memory: Memory,
    noise: jax.Array,
) -> tuple[jax.Array, Memory]:
    """One of the two calls in a step of k-diffusion's sample_dpmpp_sde, with r = 1/2 and eta = 1.

    The first goes to the middle of the step; the second starts again where the first did, with the
    data predicted in the middle. `memory` is (where the step started,): a run begins with a whole
    step.
    """
    c = plan.at(i)
    scaled = latents * c["alpha_t"]
    x0, _ = x0_and_eps(plan.prediction_type, scaled, model_output, c["alpha_t"], c["sigma_t"])
    start = jnp.where(c["from_start"] > 0, memory[0], latents)
    latents = c["xt_weight"] * start + c["data_weight"] * x0 + c["noise_std"] * noise
    return latents, (start,)


SAMPLERS: dict[str, Callable] = {
    "ddpm": ddpm_step,
    "ddim": ddim_step,
    "euler": euler_step,
    "euler_ancestral": euler_ancestral_step,
    "dpmpp_2m": dpmpp_2m_step,
    "k_dpmpp_2m": k_dpmpp_2m_step,
    "k_dpmpp_sde": k_dpmpp_sde_step,
}
# These carry x0 + sigma * eps; the model was trained on unit variance.
UNSCALED = ("euler", "euler_ancestral", "k_dpmpp_2m", "k_dpmpp_sde")


# ---- The loop ----------------------------------------------------------------------------------


def initial_latents(plan: Plan, noise: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """[b, h, w, c] standard normal noise → [b, h, w, c] float32 latents at the first step."""
    return jnp.asarray(noise, jnp.float32) * plan.init_noise_sigma


def init_carry(plan: Plan, latents: jax.Array | np.ndarray) -> dict:
    """What the loop carries, float32: latents, their predicted end, and the sampler's memory.

    Before the first step the predicted end, [b, h, w, c] like the latents, is zeros.
    """
    latents = jnp.asarray(latents, jnp.float32)
    memory: tuple = ()
    if plan.name in ("dpmpp_2m", "k_dpmpp_2m"):
        memory = (jnp.zeros_like(latents), np.float32(0))
    elif plan.name == "k_dpmpp_sde":
        memory = (latents,)
    return {"latents": latents, "memory": memory, "x0": jnp.zeros_like(latents)}


def predicted_latents(carry: dict) -> jax.Array:
    """[b, h, w, c] float32: where the last step's prediction says that the latents will end."""
    return carry["x0"]


def final_latents(carry: dict) -> jax.Array:
    """[b, h, w, c] float32 latents after the steps run so far."""
    return carry["latents"]


def run_steps(
    plan: Plan,
    model: Callable,
    carry: dict,
    key: jax.Array | None,
    start: ArrayLike,
    stop: ArrayLike,
    noise: jax.Array | None = None,
) -> dict:
    """Runs steps start..stop-1 of the plan. Meant to be called inside `jax.jit`.

    Traced bounds let one compiled program run the plan in segments. With Python integers as bounds
    the loop can be differentiated in reverse.

    Args:
      plan: from `make_plan`, as an argument of the jitted function.
      model: (model_input [b, h, w, c] float32, timestep float32 scalar, step_index int32 scalar)
        → model output [b, h, w, c]. The input is already scaled to the model's variance.
      carry: from `init_carry`, or from the segment before.
      key: a random key, or one per example [b]; may be None if nothing is drawn. Step i of example
        j draws from fold_in(key_j, i), where a single key gives key_j = fold_in(key, j): padding
        the batch or splitting the run changes no image.
      start: first step.
      stop: end, exclusive; at most `plan.num_steps`.
      noise: optional [n, b, h, w, c], used instead of drawing.

    Raises:
      ValueError: a stochastic plan has neither key nor noise, or keys of another number.
    """
    step = SAMPLERS[plan.name]
    shape = carry["latents"].shape
    keys = None
    if plan.stochastic and noise is None:
        keys = _example_keys(plan, key, shape[0])

    def draw(i):
        if not plan.stochastic:
            return None
        if noise is not None:
            return jnp.asarray(noise, jnp.float32)[i]
        drawn = fresh(i)
        if "overlap" in plan.coefficients:
            shared = plan.at(i)["overlap"]
            drawn = shared * fresh(jnp.maximum(i - 1, 0)) + jnp.sqrt(1 - shared**2) * drawn
        return drawn

    def fresh(i):
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i), shape[1:]))(keys)

    def body(i, carry):
        latents = carry["latents"]
        c = plan.at(i)
        scaled = latents * c["alpha_t"] if plan.name in UNSCALED else latents
        output = model(scaled, jnp.asarray(plan.timesteps)[i], i).astype(jnp.float32)
        x0, _ = x0_and_eps(plan.prediction_type, scaled, output, c["alpha_t"], c["sigma_t"])
        latents, memory = step(output, plan, i, latents, carry["memory"], draw(i))
        return {"latents": latents, "memory": memory, "x0": x0}

    return jax.lax.fori_loop(start, stop, body, carry)


def _example_keys(plan: Plan, key: jax.Array | None, batch: int) -> jax.Array:
    """[batch] typed keys from one key or one per example, typed or raw uint32."""
    if key is None:
        raise ValueError(f"sampler {plan.name!r} draws noise here; pass a key or the noise")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"key has shape {key.shape}; pass one key or {batch}, one per example")
    return key


def guide(
    noise_cond: jax.Array,
    noise_uncond: jax.Array,
    guidance_scale: ArrayLike,
    guidance_rescale: ArrayLike = 0.0,
) -> jax.Array:
    """Classifier-free guidance (Ho & Salimans 2207.12598) with rescale (2305.08891, section 3.4).

    Args:
      noise_cond: [b, h, w, c] model output with the condition.
      noise_uncond: [b, h, w, c] without.
      guidance_scale: scalar, may be traced; 1 is the conditional output.
      guidance_rescale: scalar in 0..1, may be traced; how far each example's standard deviation is
        pulled back to the conditional output's. 0 leaves the guided output as it is.

    Returns:
      [b, h, w, c] float32.
    """
    cond, uncond = noise_cond.astype(jnp.float32), noise_uncond.astype(jnp.float32)
    guided = uncond + guidance_scale * (cond - uncond)
    axes = tuple(range(1, guided.ndim))
    std_cond, std_guided = cond.std(axes, keepdims=True), guided.std(axes, keepdims=True)
    # A constant output has no contrast to rescale; without the guard it would turn into NaN.
    ratio = jnp.where(std_guided > 0, std_cond / jnp.where(std_guided > 0, std_guided, 1), 1)
    return guided * (1 + guidance_rescale * (ratio - 1))


def image_keys(seed: int, purpose: int, total: int) -> jax.Array:
    """[total] random keys; purpose 0 is the first noise, 1 the sampler's own."""
    key = jax.random.fold_in(jax.random.key(seed), purpose)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(total))


# ---- With a method and guidance ----------------------------------------------------------------


def guided(
    method: Any,
    graphdef: nnx.GraphDef,
    state: nnx.State,
    guidance: Guidance,
    scalars: Sequence[ArrayLike],
) -> Callable:
    """(x, t, step) to the guided prediction, for run_steps.

    Args:
        method: a methods.base.Method, whose ``denoise`` runs; None: the base alone.
        graphdef, state: of the networks that it runs (denoiser_module).
        scalars: (guidance_scale, guidance_rescale, merge_step), may be traced.
    """
    guidance_scale, guidance_rescale, merge_step = scalars

    def predict(x, t, step):
        model = nnx.merge(graphdef, guidance.denoiser_state(state, step))
        conditioning = guidance.conditional(step, merge_step)
        if guidance.unconditional is not None:
            x = interleave(x, x)
            conditioning = interleave(guidance.unconditional, conditioning)
        if guidance.scales:
            conditioning = conditioning.with_scales(guidance.scales_at(step))
        if method is None:
            out = model.unet(x, t, conditioning)
        else:
            out = method.denoise(model, x, t, conditioning, step)
        if guidance.unconditional is None:
            return out
        unconditional, conditional = deinterleave(out, 2)
        return guide(conditional, unconditional, guidance_scale, guidance_rescale)

    return predict


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def sample_steps(
    method: Any,
    graphdef: nnx.GraphDef,
    state: nnx.State,
    plan: Plan,
    carry: dict,
    guidance: Guidance,
    keys: jax.Array | None,
    scalars: Sequence[Any],
) -> dict:
    """The sampler's loop over steps start..stop-1, compiled once per plan and shape.

    Args:
        method: its ``denoise`` runs; None: the base alone. Static, like ``graphdef``.
        graphdef, state: of denoiser_module.
        scalars: (guidance_scale, guidance_rescale, merge_step, start, stop).
    """
    *settings, start, stop = scalars
    predict = guided(method, graphdef, state, guidance, settings)
    return run_steps(plan, predict, carry, keys, start, stop)
