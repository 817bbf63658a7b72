"""An IP-Adapter for style beside the identity method, as PhotoMaker's own script has it.

It is a branch of its own, "style", on every cross-attention, and reads images that a call gives as
``style_image``. The method's prompt, references and strengths stay as they are.
"""

import abc
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipeline.pictures.reading import load_image
from data_pipeline.pictures.transforms import clip_preprocess
from data_pipeline.records.schema import MAX_REFERENCES
from persongen_jax.diffusion.conditioning import Conditioning, Guidance, to_region
from persongen_jax.diffusion.options import SamplingOptions
from persongen_jax.diffusion.strengths import schedule
from persongen_jax.methods.base import Parts
from persongen_jax.methods.published.ip_adapter import IPAdapter, image_tokens
from persongen_jax.models.branches import adds_up, put_branch, take_branch
from persongen_jax.parallel.sharding import batch_sharding, put, put_array, replicated
from persongen_jax.pipeline import checks, loading
from persongen_jax.weights.errors import UnsupportedAdapter
from persongen_jax.weights.formats.ip_adapter import read_ip_adapter
from persongen_jax.weights.formats.sdxl.loading import SDXLBase

NAME = "style"  # of the branch, its stream and its scale
IMAGE, REGION = "style_image", "style_region"  # a call's arguments
ARGUMENTS = {IMAGE, REGION, NAME}  # and the name of its scale


@dataclass(frozen=True)
class Look:
    """What the adapter reads in one call.

    Attributes:
        tokens: [n, m, d] of n prompts; mask: [n, m].
        nothing: ([m, d], [m]), the same of no image, for the unconditional side.
        factors: [num_steps] strength. region: [n, 1, h, w] where it acts; None: everywhere.
    """

    tokens: np.ndarray
    mask: np.ndarray
    nothing: tuple[np.ndarray, np.ndarray]
    factors: np.ndarray
    region: np.ndarray | None

    def added(self, guidance: Guidance, which: np.ndarray, mesh: Mesh) -> Guidance:
        """``guidance`` of a batch whose rows belong to these prompts, with the style's stream."""
        where = batch_sharding(mesh)
        region = None if self.region is None else put_array(self.region[which], where)

        def with_style(conditioning: Conditioning | None, tokens, mask):
            if conditioning is None:
                return None
            arrays = put_array(tokens, where), put_array(mask, where)
            return conditioning.with_stream(NAME, *arrays, region=region)

        given = self.tokens[which], self.mask[which]
        none = tuple(np.broadcast_to(a, (len(which), *a.shape)) for a in self.nothing)
        return replace(
            guidance,
            late=with_style(guidance.late, *given),
            early=with_style(guidance.early, *given),
            unconditional=with_style(guidance.unconditional, *none),
            scales={**guidance.scales, NAME: self.factors},
        )


class StyleAdapter:
    """A loaded file: its image encoder and projection, and its branch on the base's UNet.

    Args:
        base: SDXLBase. path, encoder: see Pipeline.load_style.

    Raises:
        UnsupportedAdapter: a FaceID file, which reads faces, or one with a LoRA. WeightsError:
            another fault of it.
    """

    def __init__(self, base: SDXLBase, mesh: Mesh, path: str | Path, encoder: str | Path):
        self.base, self.path = base, str(path)
        unet: Any = base.model.unet
        with read_ip_adapter(path) as file:
            if file.kind not in ("base", "plus"):
                raise UnsupportedAdapter(
                    f"{path}: is {file.kind}, which reads faces; load it by load_method. A style "
                    "is read by a base or plus IP-Adapter"
                )
            if file.rank is not None:
                raise UnsupportedAdapter(
                    f"{path}: has a LoRA on the base's layers, which would change what the method "
                    "reads too; load it by load_method, or take a file without"
                )
        config = ConfigDict({"start_from": str(path), "id_encoder": str(encoder)})
        config.base, config.dtype = str(base.folder or base.path), jnp.dtype(unet.dtype).name
        self.method = IPAdapter()
        self.method.branch = NAME
        parts: Any = nnx.Module()
        parts.unet = unet
        self.method.attach(Parts(parts, base.tokenizers), config, nnx.Rngs(0))
        del parts.unet  # which is the base's
        self.parts = parts
        nnx.update(self.parts, put(nnx.state(self.parts), replicated(mesh)))

    def read(self, images: list[list[np.ndarray]]) -> tuple[Any, Any, tuple]:
        """(tokens [n, m, d], mask [n, m]) of n lists of images, and those of no image.

        Prompts with the same images share one run of the encoder, which is of one size always.
        """
        size, found = self.parts.image_encoder.config["image_size"], {}
        graphdef, state = nnx.split(self.parts)
        for own in images:
            if (key := _key(own)) not in found:
                pixels = np.zeros((1, MAX_REFERENCES, size, size, 3), np.float32)
                for place, image in enumerate(own):
                    pixels[0, place] = clip_preprocess(image, size)
                tokens, nothing = map(np.asarray, _tokens(graphdef, state, pixels))
                mask = np.repeat(np.arange(MAX_REFERENCES) < len(own), len(nothing))
                found[key] = tokens.reshape(-1, tokens.shape[-1]), mask
        rows = [found[_key(own)] for own in images]
        first = np.repeat(np.arange(MAX_REFERENCES) == 0, len(nothing))
        nowhere = np.tile(nothing, (MAX_REFERENCES, 1)), first
        return np.stack([row for row, _ in rows]), np.stack([mask for _, mask in rows]), nowhere


def _key(images: list[np.ndarray]) -> tuple[int, ...]:
    return tuple(map(id, images))


@jax.jit(static_argnums=0)
def _tokens(graphdef, state, pixels):
    parts = nnx.merge(graphdef, state)
    return image_tokens(parts, IPAdapter().encode_references(parts, pixels))


class WithStyle(abc.ABC):
    """A pipeline's style adapter: load, unload.

    Attributes:
        style: StyleAdapter, or None.
    """

    base: SDXLBase
    mesh: Mesh
    style: StyleAdapter | None
    adapters: loading.Adapters

    @abc.abstractmethod
    def _place(self) -> None:
        """Place every array of the model on the devices."""

    @abc.abstractmethod
    def _put_adapters(self, adapters: loading.Adapters) -> None:
        """Put these LoRAs on the model."""

    def load_style(self, path: str | Path, *, encoder: str | Path = "") -> None:
        """Load an IP-Adapter, base or plus, that acts in addition to a method; then pass
        ``style_image`` when calling, per prompt an image or up to four, and ``scales={"style":
        0.7}`` for its strength, with ranges of steps as for any other. ``style_region`` is a mask
        per prompt, where it acts. One that is loaded already is replaced.

        Args:
            path: its file. encoder: the folder of its image encoder; default:
                ``<base>/image_encoder``.

        Raises:
            WeightsError: the file does not exist, is of another kind, or for another base.
            ValueError: the loaded method composes its branches otherwise (the cascade).
        """
        checks.check_path("path", path)
        self._check_adds_up(path)
        before, self.style = self.style, None
        taken = take_branch(self.base.model.unet, NAME)
        loading.remove_all(self.base.model)  # the file's layers are those without LoRA
        try:
            self.style = StyleAdapter(self.base, self.mesh, path, encoder)
        except BaseException:
            take_branch(self.base.model.unet, NAME)
            if before is not None:
                put_branch(self.base.model.unet, NAME, taken)
                self.style = before
            raise
        finally:
            self._put_adapters(self.adapters)
        self._place()

    def unload_style(self) -> None:
        """Remove the style adapter and free its memory; nothing happens without one."""
        take_branch(self.base.model.unet, NAME)
        self.style = None

    def _check_style(self) -> None:
        """ValueError if the style adapter cannot act next to the method that is attached."""
        if self.style is not None:
            self._check_adds_up(self.style.path)

    def _check_adds_up(self, path: str | Path) -> None:
        if not adds_up(self.base.model.unet):
            raise ValueError(
                f"style adapter {path}: is added to what the prompt gives, and the method has "
                "layers that follow each other (the cascade); use one of the two, after "
                "unload_style() or unload_method()"
            )

    @contextlib.contextmanager
    def _style_taken_off(self) -> Iterator[None]:
        """Inside, the UNet has no branch for style, so that a method can be attached to it."""
        taken = take_branch(self.base.model.unet, NAME)
        try:
            yield
        finally:
            if taken:
                put_branch(self.base.model.unet, NAME, taken)

    def _read_style(
        self, inputs: dict, options: SamplingOptions, count: int
    ) -> tuple[tuple | None, dict, SamplingOptions]:
        """(what _look needs or None, the other inputs, the options for the others).

        Raises:
            ValueError: an image without an adapter, a number of images that does not fit.
        """
        inputs, scales = dict(inputs), dict(options.scales or {})
        given, region = inputs.pop(IMAGE, None), inputs.pop(REGION, None)
        if given is None:
            if region is not None or NAME in scales:
                what = REGION if region is not None else f"scales: {NAME!r}"
                raise ValueError(f"{what}: without {IMAGE}; give it too")
            if self.style is not None:
                checks.warn_of_call(
                    f"style adapter {self.style.path}: no {IMAGE} is given, so it has no effect"
                )
            return None, inputs, options
        if self.style is None:
            raise ValueError(f"{IMAGE}: no adapter reads it; call load_style(FILE) first")
        if not isinstance(given, (list, tuple)) or len(given) != count:
            raise ValueError(
                f"{IMAGE}: give a list, for each of {count} prompts an image or a list"
            )
        images = [list(own) if isinstance(own, (list, tuple)) else [own] for own in given]
        for number, own in enumerate(images, 1):
            if not 1 <= len(own) <= MAX_REFERENCES:
                raise ValueError(
                    f"{IMAGE} of prompt {number}: {len(own)} images; give one to {MAX_REFERENCES}"
                )
        once: dict[int, np.ndarray] = {}  # several prompts may share the object
        for n, own in enumerate(images, 1):
            for k, image in enumerate(own, 1):
                if id(image) not in once:
                    once[id(image)] = load_image(image, f"{IMAGE} {k} of prompt {n}")
        read = [[once[id(image)] for image in own] for own in images]
        strength = scales.pop(NAME, 1.0)
        return (self.style, read, strength, region), inputs, replace(options, scales=scales)

    def _look(self, asked: tuple, shape: tuple, num_steps: int) -> Look:
        """What the adapter reads, for latents of ``shape`` (h, w); ``asked``: _read_style's."""
        style, images, strength, region = asked
        masks = None
        if region is not None:
            if not isinstance(region, (list, tuple)) or len(region) != len(images):
                raise ValueError(f"{REGION}: give a list, a mask for each of {len(images)} prompts")
            height, width = shape
            found = [
                to_region(mask, height, width, f"{REGION} of prompt {n}")
                for n, mask in enumerate(region, 1)
            ]
            masks = np.stack(found)[:, None]
        factors = schedule(NAME, strength, num_steps)
        if not factors.any():
            checks.warn_of_call("scales: 'style' is 0 in every step, so it has no effect")
        tokens, mask, nothing = style.read(images)
        return Look(tokens, mask, nothing, factors, masks)
