"""The sampler's loop around a method's denoiser, with classifier-free guidance."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax.typing import ArrayLike

from persongen_jax.diffusion import samplers as sampling
from persongen_jax.diffusion.conditioning import Guidance, deinterleave, interleave
from persongen_jax.diffusion.plan import Plan
from persongen_jax.methods.base import Method


def guided(
    method: Method | None,
    graphdef: nnx.GraphDef,
    state: nnx.State,
    guidance: Guidance,
    scalars: Sequence[ArrayLike],
) -> Callable:
    """(x, t, step) to the guided prediction, for sampling.run_steps.

    Args:
        method: its ``denoise`` runs; None: the base alone.
        graphdef, state: of the networks that it runs (denoiser_view).
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
        return sampling.guide(conditional, unconditional, guidance_scale, guidance_rescale)

    return predict


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def sample_steps(
    method: Method | None,
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
        graphdef, state: of denoiser_view.
        scalars: (guidance_scale, guidance_rescale, merge_step, start, stop).
    """
    *settings, start, stop = scalars
    predict = guided(method, graphdef, state, guidance, settings)
    return sampling.run_steps(plan, predict, carry, keys, start, stop)
