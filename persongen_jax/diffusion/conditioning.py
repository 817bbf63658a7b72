"""What the UNet is conditioned on: named token streams, the pooled prompt, the micro-conditioning.

Streams and maps are looked up by name ("text", "background", "identity", "pose", ...), never by
slicing one long sequence, so that a method may add one without changes to any other part.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from data_pipeline.pictures.reading import load_mask

T = TypeVar("T")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenStream:
    """One sequence to attend to.

    Attributes:
        tokens: [b, n, d].
        mask: [b, n] bool, True where it may be attended to; None: everywhere.
        scale: [b] factor of the output of the attention branch that reads it; None: 1. It is data,
            so it may differ by call, example or step without recompilation. "text" has none.
        region: [b, g, h, w] in 0..1, where in the image each of the g equal parts of the tokens
            acts (g people in one image); None: all act everywhere. Any resolution: attention layers
            resize it to theirs. "text" has none.
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


Streams = dict[str, TokenStream]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ControlMap:
    """An image whose pixels condition the corresponding places, as a ControlNet reads it.

    Attributes:
        pixels: [b, h, w, c].
        scale: [b] factor of its effect; None: 1. It is data, like a stream's.
    """

    pixels: jax.Array
    scale: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Residuals:
    """What ControlNets add within the UNet, by diffusers' names.

    Attributes:
        down_block_additional_residuals: one for each skip, [b, h, w, c], or [b, 1, 1, c].
        mid_block_additional_residual: for the output of the mid block.
    """

    down_block_additional_residuals: list[jax.Array]
    mid_block_additional_residual: jax.Array

    def __add__(self, other: "Residuals") -> "Residuals":
        """Those of two ControlNets together."""
        return jax.tree.map(jnp.add, self, other)

    def added(self, x: jax.Array, skips: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        """The mid block's output ``x`` and the skips with their residuals, in their dtype."""
        own = self.down_block_additional_residuals
        skips = [skip + r.astype(skip.dtype) for skip, r in zip(skips, own, strict=True)]
        return x + self.mid_block_additional_residual.astype(x.dtype), skips


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditioning:
    """All inputs of the UNet other than the noisy latents and the timestep.

    Attributes:
        streams: name to :class:`TokenStream`; the base model was trained with "text".
        pooled_prompt_embeds: [b, d], the second text tower's projected embedding, or None.
        time_ids: [b, 6], (original_h, original_w, crop_top, crop_left, target_h, target_w) in
            pixels (SDXL, arXiv 2307.01952, section 2.2), or None for models without them.
        maps: name to :class:`ControlMap`, for methods whose ``denoise`` reads any.
        residuals: of ControlNets, which run before the UNet; None: there are none.
    """

    streams: Streams
    pooled_prompt_embeds: jax.Array | None = None
    time_ids: jax.Array | None = None
    maps: dict[str, ControlMap] = field(default_factory=dict)
    residuals: Residuals | None = None

    def with_stream(
        self,
        name: str,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        scale: jax.Array | None = None,
        region: jax.Array | None = None,
    ) -> "Conditioning":
        """A copy with this stream ``name``."""
        stream = TokenStream(tokens, mask, scale, region)
        return replace(self, streams={**self.streams, name: stream})

    def with_scales(self, scales: Mapping[str, ArrayLike]) -> "Conditioning":
        """A copy with the scalars of ``scales`` for all streams but "text" and for all maps.

        What ``scales`` does not name keeps its scale.
        """

        def scaled(name, part, rows):
            if name == "text" or name not in scales:
                return part
            return replace(part, scale=jnp.full(rows, scales[name], jnp.float32))

        streams = {n: scaled(n, s, s.tokens.shape[0]) for n, s in self.streams.items()}
        maps = {n: scaled(n, m, m.pixels.shape[0]) for n, m in self.maps.items()}
        return replace(self, streams=streams, maps=maps)

    def with_map(
        self, name: str, pixels: jax.Array, scale: jax.Array | None = None
    ) -> "Conditioning":
        """A copy with this map ``name``, [b, h, w, c]; ValueError for a name that is taken."""
        if name in (*self.streams, "identity", "lora"):
            raise ValueError(f"config.control={name!r}: the method has another input of this name")
        return replace(self, maps={**self.maps, name: ControlMap(pixels, scale)})

    def with_residuals(self, residuals: Residuals) -> "Conditioning":
        """A copy with these residuals added to its own, without maps, which are read by then."""
        own = self.residuals
        return replace(self, maps={}, residuals=residuals if own is None else own + residuals)

    @property
    def scalable_names(self) -> tuple[str, ...]:
        """The names that can have a scale: every stream but "text", every map."""
        return (*(name for name in self.streams if name != "text"), *self.maps)


def select(keep_first: ArrayLike, first: Conditioning, second: Conditioning) -> Conditioning:
    """Per example ``first`` where ``keep_first`` [b] (or a scalar) is True, else ``second``.

    Both must have the same streams with the same shapes; the choice is data, not structure, so it
    never recompiles.
    """
    # JAX declares the type of a structure where mypy does not find it.
    if jax.tree.structure(first) != jax.tree.structure(second):  # type: ignore[operator]
        raise ValueError(
            "two conditionings can be mixed only if they have the same streams and masks; got "
            f"{sorted(first.streams)} and {sorted(second.streams)}"
        )

    def pick(a, b):
        keep = jnp.asarray(keep_first)
        return jnp.where(keep.reshape(keep.shape + (1,) * (a.ndim - keep.ndim)), a, b)

    return jax.tree.map(pick, first, second)


def interleave(*trees: T) -> T:
    """Joins trees of arrays [b, ...] to [k * b, ...], as guidance does with its k sides.

    The sides of an example are adjacent, so that none of them moves to another device than its
    example. :func:`deinterleave` splits the result again.
    """

    def join(*leaves):
        return jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:])

    return jax.tree.map(join, *trees)


def deinterleave(array: jax.Array, sides: int) -> list[jax.Array]:
    """Splits [k * b, ...] into the [b, ...] of each of the k sides."""
    array = array.reshape(-1, sides, *array.shape[1:])
    return [array[:, i] for i in range(sides)]


# ---- Conditioning by sampler step ----------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guidance:
    """Through step ``merge_step`` (inclusive) the UNet reads ``early``, after it ``late``.

    This is PhotoMaker's delayed merging (arXiv 2312.04461, section 3.3); without references there
    is only ``late``.

    Attributes:
        late: prompts and identity; early: the prompts alone; unconditional: neither.
        plain: [b, n, d], the stream "text" of ``late`` without the identity; None if it has none.
        scales: name to [steps] factors: "identity" for its part of the text, streams, maps, "lora".
        lora: path of a layer of the UNet to [r], the part of its LoRA's scale that is the method's.
    """

    late: Conditioning
    unconditional: Conditioning | None = None
    early: Conditioning | None = None
    plain: jax.Array | None = None
    scales: Mapping[str, ArrayLike] = field(default_factory=dict)
    lora: dict[str, jax.Array] = field(default_factory=dict)

    def scales_at(self, step: int | jax.Array) -> dict[str, jax.Array]:
        return {name: jnp.asarray(values)[step] for name, values in self.scales.items()}

    def conditional(self, step: int | jax.Array, merge_step: int | jax.Array) -> Conditioning:
        """What the conditional side reads at a step (may be traced)."""
        if self.early is None:
            return self.late
        late = self.late
        if self.plain is not None:
            late = scale_identity(late, self.plain, self.scales_at(step)["identity"])
        return select(step <= merge_step, self.early, late)

    def denoiser_state(self, state: nnx.State, step: int | jax.Array) -> nnx.State:
        """The denoiser's state with the method's LoRA scaled for a step."""
        if not self.lora:
            return state
        factor, flat = self.scales_at(step)["lora"], []
        for path, variable in nnx.to_flat_state(state):
            if path[0] == "unet" and path[-2:] == ("lora", "scale"):
                own = self.lora[".".join(map(str, path[1:-2]))]
                variable = variable.replace(variable.get_value() + (factor - 1) * own)
            flat.append((path, variable))
        return nnx.from_flat_state(flat)


def scale_identity(late: Conditioning, plain: jax.Array, scale: ArrayLike) -> Conditioning:
    """``late`` with ``scale`` times what the identity changes in its stream "text".

    A token e that was fused to f becomes e + scale * (f - e); exactly f at 1 and e at 0.
    """
    text = late.streams["text"]
    tokens = (scale * text.tokens + (1 - scale) * plain).astype(text.tokens.dtype)
    # What the identity does not touch stays as it is to the bit.
    tokens = jnp.where(text.tokens == plain, plain, tokens)
    streams = {**late.streams, "text": TokenStream(tokens, text.mask)}
    return replace(late, streams=streams)


def region_arrays(
    regions: Sequence[Sequence[Any]], people: Sequence[Sequence[Any]], height: int, width: int
) -> np.ndarray:
    """[prompts, p, height, width] float32 in 0..1; p is the most people of a prompt.

    Places of absent people hold 0.
    """
    out = np.zeros((len(regions), max(map(len, people)), height, width), np.float32)
    for row, masks in enumerate(regions):
        for column, mask in enumerate(masks):
            name = f"region {column + 1} of prompt {row + 1}"
            out[row, column] = to_region(mask, height, width, name)
    return out


def to_region(mask: Any, height: int, width: int, name: str = "a region") -> np.ndarray:
    """A mask of any size, averaged down (or repeated up) to [height, width] float32 in 0..1.

    Args:
        mask: anything that load_mask accepts: a path, a file object, a PIL image (white is 1), an
            array [h, w] bool, float in 0..1, or uint8.
        name: of the region in messages.

    Raises:
        ImageError: another array, or an image that cannot be read.
    """
    from PIL import Image

    mask = load_mask(mask, name)
    if not mask.any():
        warnings.warn(f"{name} is empty (all black): it acts nowhere", stacklevel=2)
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BOX))
