"""The platform for which kernels and forms of layers are picked: the one present, or another."""

import contextlib
import contextvars

import jax

_platform = contextvars.ContextVar("platform", default=None)
# JAX keeps traces by this too, so that one made with kernels is never taken for one without.
_attention = jax.make_user_context("auto")


@contextlib.contextmanager
def compile_for(platform: str):
    """Within this block, kernels are picked for ``platform`` instead of the backend present.

    For compiling ahead of time for a machine that is not there.
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def target() -> str:
    """ "cpu", "gpu", "tpu"."""
    return _platform.get() or jax.default_backend()


def attention_by(name: str):
    """Within this block attention is by "auto", the platform's best kernel, or by "xla".

    The latter is the formula as products and a softmax, which any platform can compile. Everything
    else stays in the platform's own form.
    """
    if name not in ("auto", "xla"):
        raise ValueError(f"attention={name!r}: use 'auto' or 'xla'")
    return _attention(name)


def kernels_for_attention() -> bool:
    """May attention be a kernel, or is it to be XLA's?"""
    return _attention.value == "auto"
