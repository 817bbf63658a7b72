"""The platform that kernels and layer implementations are chosen for."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)
# JAX's trace cache depends on this too, so that a trace with kernels is never reused without them.
_attention = jax.make_user_context("auto")


@contextlib.contextmanager
def compile_for(platform: str) -> Iterator[None]:
    """Within this block, choose kernels for ``platform`` instead of the present backend.

    For ahead-of-time compilation for a machine that is not present.
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def target_platform() -> str:
    """ "cpu", "gpu", "tpu"."""
    return _platform.get() or jax.default_backend()


def attention_by(name: str) -> contextlib.AbstractContextManager[None]:
    """Within this block, attention uses "auto", the platform's best kernel, or "xla".

    The latter is the formula as products and a softmax, which any platform can compile. Everything
    else keeps the platform's own implementation.
    """
    if name not in ("auto", "xla"):
        raise ValueError(f"attention={name!r}: use 'auto' or 'xla'")
    return _attention(name)


def attention_kernels_allowed() -> bool:
    """Whether attention may use a kernel; otherwise it uses XLA."""
    return _attention.value == "auto"
