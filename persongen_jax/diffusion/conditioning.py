"""What the UNet is conditioned on: named token streams, the pooled prompt, the micro-conditioning.

Streams and maps are looked up by name ("text", "background", "identity", "pose", ...), never by
slicing one long sequence, so that a method may add one without any other part knowing.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from flax import nnx


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
class ControlMap:
    """One picture that conditions place by place, as a ControlNet reads it.

    Attributes:
        pixels: [b, h, w, c].
        scale: [b] factor of what is made of it; None: 1. It is data, as a stream's is.
    """

    pixels: jax.Array
    scale: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditioning:
    """All that the UNet sees besides the noisy latents and the timestep.

    Attributes:
        streams: name to :class:`TokenStream`; "text" is what the base model was trained with.
        pooled_prompt_embeds: [b, d], the second text tower's projected embedding, or None.
        time_ids: [b, 6], (original_h, original_w, crop_top, crop_left, target_h, target_w) in
            pixels (SDXL, arXiv 2307.01952, section 2.2), or None for models without them.
        maps: name to :class:`ControlMap`, for methods whose ``denoise`` reads any.
    """

    streams: dict[str, TokenStream]
    pooled_prompt_embeds: jax.Array | None = None
    time_ids: jax.Array | None = None
    maps: dict[str, ControlMap] = field(default_factory=dict)

    def with_stream(self, name: str, tokens, mask=None, scale=None, region=None) -> "Conditioning":
        """A copy in which stream ``name`` is this one."""
        stream = TokenStream(tokens, mask, scale, region)
        return replace(self, streams={**self.streams, name: stream})

    def with_scales(self, scales: dict) -> "Conditioning":
        """A copy in which every stream but "text" and every map has its scalar of ``scales``.

        One that ``scales`` does not name keeps what it has.
        """

        def scaled(name, part, rows):
            if name == "text" or name not in scales:
                return part
            return replace(part, scale=jnp.full(rows, scales[name], jnp.float32))

        streams = {n: scaled(n, s, s.tokens.shape[0]) for n, s in self.streams.items()}
        maps = {n: scaled(n, m, m.pixels.shape[0]) for n, m in self.maps.items()}
        return replace(self, streams=streams, maps=maps)

    def with_map(self, name: str, pixels, scale=None) -> "Conditioning":
        """A copy in which map ``name`` is this one, [b, h, w, c]."""
        return replace(self, maps={**self.maps, name: ControlMap(pixels, scale)})

    @property
    def scaled_names(self) -> tuple[str, ...]:
        """What can be given a strength of its own: every stream but "text", every map."""
        return (*(name for name in self.streams if name != "text"), *self.maps)


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


# ---- From step to step of the sampler ----------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guidance:
    """Through step ``merge_step`` (inclusive) the UNet reads ``early``, after it ``late``.

    That is PhotoMaker's delayed merging (arXiv 2312.04461, section 3.3); a run without references
    has only ``late``.

    Attributes:
        late: prompts and identity; early: the prompts alone; unconditional: neither.
        plain: [b, n, d], late's stream "text" without the identity in it; None where none is.
        scales: name to [steps] factors: "identity" of what is in the text, streams, maps, "lora".
        lora: path of a layer of the UNet to [r], what of its LoRA's scale is the method's own.
    """

    late: Conditioning
    unconditional: Conditioning | None = None
    early: Conditioning | None = None
    plain: jax.Array | None = None
    scales: dict[str, jax.Array] = field(default_factory=dict)
    lora: dict[str, jax.Array] = field(default_factory=dict)

    def scales_at(self, step) -> dict[str, jax.Array]:
        return {name: jnp.asarray(values)[step] for name, values in self.scales.items()}

    def conditional(self, step, merge_step) -> Conditioning:
        """What the conditional side reads at a step (may be traced)."""
        if self.early is None:
            return self.late
        late = self.late
        if self.plain is not None:
            late = weaken(late, self.plain, self.scales_at(step)["identity"])
        return select(step <= merge_step, self.early, late)

    def denoiser_state(self, state: nnx.State, step) -> nnx.State:
        """The denoiser's state with the method's LoRA as strong as it is to be at a step."""
        if not self.lora:
            return state
        factor, flat = self.scales_at(step)["lora"], []
        for path, variable in nnx.to_flat_state(state):
            if path[0] == "unet" and path[-2:] == ("lora", "scale"):
                own = self.lora[".".join(map(str, path[1:-2]))]
                variable = variable.replace(variable.get_value() + (factor - 1) * own)
            flat.append((path, variable))
        return nnx.from_flat_state(flat)


def weaken(late: Conditioning, plain, scale) -> Conditioning:
    """``late`` with ``scale`` times what the identity changes in its stream "text".

    A token e that was fused to f becomes e + scale * (f - e); exactly f at 1 and e at 0.
    """
    text = late.streams["text"]
    tokens = (scale * text.tokens + (1 - scale) * plain).astype(text.tokens.dtype)
    # What the identity does not touch stays as it is to the bit.
    tokens = jnp.where(text.tokens == plain, plain, tokens)
    streams = {**late.streams, "text": TokenStream(tokens, text.mask)}
    return replace(late, streams=streams)
