"""What the UNet is conditioned on: named token streams, the pooled prompt, the micro-conditioning.

Streams are looked up by name ("text", later "background", "body", "identity", ...), never by
slicing one long sequence, so that a method may add one without any other part knowing.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenStream:
    """One sequence to attend to.

    Attributes:
        tokens: [b, n, d].
        mask: [b, n] bool, True where it may be attended to; None: everywhere.
        scale: [b] factor of what the attention branch that reads it adds; None: 1. It is data, so
            that it differs by call, example or step without a new compilation. "text" has none.
        region: [b, g, h, w] in 0..1, where in the picture each of the g equal parts of the tokens
            acts (g people in one picture); None: all act everywhere. Any resolution: attention
            layers resize it to theirs. "text" has none.
    """

    tokens: jax.Array
    mask: jax.Array | None = None
    scale: jax.Array | None = None
    region: jax.Array | None = None

    def at_resolution(self, height: int, width: int) -> "TokenStream":
        """With the region averaged down to (or interpolated up to) [b, g, height, width]."""
        if self.region is None or self.region.shape[2:] == (height, width):
            return self
        shape = (*self.region.shape[:2], height, width)
        return replace(self, region=jax.image.resize(self.region, shape, "linear"))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditioning:
    """All that the UNet sees beside the noisy latents and the timestep.

    Attributes:
        streams: name to :class:`TokenStream`; "text" is what the base model was trained with.
        pooled_prompt_embeds: [b, d], the second text tower's projected embedding, or None.
        time_ids: [b, 6], (original_h, original_w, crop_top, crop_left, target_h, target_w) in
            pixels (SDXL, arXiv 2307.01952, section 2.2), or None for models without them.
    """

    streams: dict[str, TokenStream]
    pooled_prompt_embeds: jax.Array | None = None
    time_ids: jax.Array | None = None

    def with_stream(self, name: str, tokens, mask=None, scale=None, region=None) -> "Conditioning":
        """A copy in which stream ``name`` is this one."""
        stream = TokenStream(tokens, mask, scale, region)
        return replace(self, streams={**self.streams, name: stream})

    def with_scales(self, scales: dict) -> "Conditioning":
        """A copy in which every stream but "text" has its scalar of ``scales``, by name."""

        def scaled(name, stream):
            if name == "text":
                return stream
            scale = jnp.full(stream.tokens.shape[0], scales[name], jnp.float32)
            return replace(stream, scale=scale)

        return replace(self, streams={n: scaled(n, s) for n, s in self.streams.items()})


def select(keep_first, first: Conditioning, second: Conditioning) -> Conditioning:
    """Per example ``first`` where ``keep_first`` [b] (or a scalar) is True, ``second`` elsewhere.

    Both must have the same streams with the same shapes; the choice is data, not structure, so it
    never recompiles.
    """
    if jax.tree.structure(first) != jax.tree.structure(second):
        raise ValueError(
            "two conditionings can be mixed only if they have the same streams and masks; got "
            f"{sorted(first.streams)} and {sorted(second.streams)}"
        )

    def pick(a, b):
        keep = jnp.asarray(keep_first)
        return jnp.where(keep.reshape(keep.shape + (1,) * (a.ndim - keep.ndim)), a, b)

    return jax.tree.map(pick, first, second)


def interleave(*trees):
    """Trees of arrays [b, ...] joined to [k * b, ...] as guidance does with its k sides.

    Every example's sides lie next to each other, so that none of them has to move to another device
    than its example's. :func:`deinterleave` takes the result of them apart again.
    """

    def join(*leaves):
        return jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:])

    return jax.tree.map(join, *trees)


def deinterleave(array, sides: int) -> list[jax.Array]:
    """[k * b, ...] to the [b, ...] of each of the k sides."""
    array = array.reshape(-1, sides, *array.shape[1:])
    return [array[:, i] for i in range(sides)]
