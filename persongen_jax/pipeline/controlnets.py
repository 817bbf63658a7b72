"""The ControlNets that a pipeline has loaded, and what they make of a call."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from persongen_jax.diffusion.conditioning import Guidance
from persongen_jax.diffusion.control import WithControlNets
from persongen_jax.methods.base import Method, Model, denoiser_module
from persongen_jax.methods.published.controlnet import new_controlnet
from persongen_jax.models.sdxl.controlnet import ControlNetModel
from persongen_jax.parallel.sharding import (
    batch_sharding,
    put,
    put_array,
    replicated,
    shardings_by_path,
)
from persongen_jax.pipeline.checks import check_kinds, check_path, warn_of_call
from persongen_jax.pipeline.control_options import ControlOptions, fitted, stretched
from persongen_jax.settings import check_version
from persongen_jax.training.partition import fill_trained
from persongen_jax.training.trained import load_trained
from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.formats.controlnet import load_controlnet
from persongen_jax.weights.formats.sdxl.loading import SDXLBase
from persongen_jax.weights.licences import say_terms

NAME = "controlnet"  # of the first one's map; the others are numbered, as diffusers' folders


@dataclass(frozen=True)
class Control:
    """What the nets read in one call.

    Attributes:
        names: of the maps, one per net. pixels: per net [n, h, w, 3] float32 in 0..1, n prompts.
        factors: per name [num_steps]. guess_mode: also where the first net pools its residuals.
    """

    names: tuple[str, ...]
    pixels: tuple[np.ndarray, ...]
    factors: dict[str, np.ndarray]
    guess_mode: bool

    def added(self, guidance: Guidance, which: np.ndarray, mesh: Mesh) -> Guidance:
        """``guidance`` of a batch whose rows belong to these prompts, with the nets' images."""
        maps = {
            name: put_array(own[which], batch_sharding(mesh))
            for name, own in zip(self.names, self.pixels, strict=True)
        }

        def with_maps(conditioning):
            if conditioning is None:
                return None
            for name, own in maps.items():
                conditioning = conditioning.with_map(name, own)
            return conditioning

        return replace(
            guidance,
            late=with_maps(guidance.late),
            early=with_maps(guidance.early),
            unconditional=with_maps(guidance.unconditional),
            scales={**guidance.scales, **self.factors},
        )


def is_run(path: Path) -> bool:
    """Whether it is a training run of this project, or one of its checkpoints."""
    return (path / "checkpoints").is_dir() or path.parent.name == "checkpoints"


class ControlNets:
    """Loaded nets by name, in the order of loading.

    Args:
        base: SDXLBase. mesh: the nets are kept on its devices, whole or, with ``shard_weights``,
            over its "fsdp" groups.
    """

    def __init__(self, base: SDXLBase, mesh: Mesh, shard_weights: bool):
        self.base, self.mesh, self.shard_weights = base, mesh, shard_weights
        self.nets: dict[str, ControlNetModel] = {}

    def load(self, path: str | Path, name: str) -> None:
        """See Pipeline.load_controlnet."""
        net = self._open(Path(path))
        factor = self.base.model.vae.vae_scale_factor
        if net.factor != factor:
            raise WeightsError(
                f"{path}: reads images {net.factor} times as large as latents, and this base's VAE "
                f"makes them {factor} times as large. Give one that was made for this base."
            )
        if net.config["conditioning_channels"] != 3:
            raise WeightsError(
                f"{path}: reads images of {net.config['conditioning_channels']} channels; only "
                "nets that read RGB are supported."
            )
        state = nnx.state(net)
        shard = self.shard_weights
        where = shardings_by_path(self.mesh, state) if shard else replicated(self.mesh)
        nnx.update(net, put(state, where))
        self.nets[name] = net

    def unload(self, name: str | None) -> None:
        """See Pipeline.unload_controlnet."""
        if name is not None and name not in self.nets:
            raise ValueError(
                f"ControlNet {name!r} is not loaded; loaded: {', '.join(self.nets) or 'none'}"
            )
        for each in list(self.nets) if name is None else [name]:
            del self.nets[each]

    def _open(self, path: Path) -> ControlNetModel:
        unet: Any = self.base.model.unet
        if is_run(path):
            return self._of_run(path)
        kw = {"dtype": unet.dtype, "param_dtype": self.stored_dtype}
        return load_controlnet(path, unet.config, **kw)[0]

    @property
    def stored_dtype(self) -> DTypeLike:
        """That of the base's weights."""
        return self.base.model.unet.conv_in.kernel.get_value().dtype

    def _of_run(self, path: Path) -> ControlNetModel:
        """The ControlNet that a run of this project has trained."""
        trained, saved = load_trained(path, replicated(self.mesh))
        check_version(saved, path)
        own = {p: array for p, array in trained.items() if p.startswith("controlnet/")}
        if not own:
            raise WeightsError(f"{path}: the run has trained no ControlNet, but {saved['method']}.")
        if saved["method"] != "controlnet":
            raise WeightsError(
                f"{path}: its ControlNet is a part of the method {saved['method']}. Load it by "
                "load_method, which reads it."
            )
        holder: Any = nnx.Module()
        holder.controlnet = new_controlnet(self.base.model, nnx.Rngs(0))
        fill_trained(holder, own, (("controlnet/.*", ""),), str(path))
        net = holder.controlnet
        # Training keeps float32; here it is stored as the base is.
        nnx.update(net, jax.tree.map(lambda x: x.astype(self.stored_dtype), nnx.state(net)))
        return net

    def read(self, named: dict, count: int) -> tuple["ControlCall | None", dict]:
        """What they read in a call with ``count`` prompts; and the rest of ``named``.

        Raises:
            ValueError: arguments without a ControlNet, or without an image; images that do not fit.
            ImageError: one cannot be read.
        """
        options, rest = ControlOptions.taken(named)
        if options.control_image is None:
            if changed := options.changed():
                raise ValueError(f"{', '.join(changed)}: without control_image; give it too")
            if self.nets:
                warn_of_call(
                    f"ControlNet {', '.join(self.nets)}: no control_image is given, so it has no "
                    "effect"
                )
            return None, rest
        if not self.nets:
            raise ValueError(
                "control_image needs a ControlNet: call load_controlnet(DIR) first "
                "(generate: --controlnet DIR)"
            )
        images = options.images(len(self.nets), count)
        return ControlCall(dict(self.nets), options, images, count), rest


class ControlCall:
    """A call's ControlNets, with the images that they read.

    Args:
        nets: by name. images: per net one image or ``count``, uint8 RGB [h, w, 3].
        count: of prompts.
    """

    def __init__(
        self,
        nets: dict[str, ControlNetModel],
        options: ControlOptions,
        images: list[list[np.ndarray]],
        count: int,
    ):
        self.nets, self.options, self.images, self.count = nets, options, images, count

    def size(self, factor: int) -> tuple[int, int]:
        """(height, width) of images whose size a call does not say: the first control image's.

        As in diffusers; rounded down to a multiple of the VAE's ``factor``.
        """
        height, width = (max(factor, s - s % factor) for s in self.images[0][0].shape[:2])
        return height, width

    def control(self, size: tuple[int, int], num_steps: int, guidance_scale: float) -> Control:
        """What the nets read for images of ``size``; warns of what has no effect.

        Raises:
            ValueError: a scale or window that does not fit.
        """
        names = tuple(NAME if k == 0 else f"{NAME}_{k}" for k in range(len(self.nets)))
        pixels = []
        for own in self.images:
            each = np.stack([fitted(image, size) for image in own])
            pixels.append(np.broadcast_to(each, (self.count, *each.shape[1:])))
        factors = dict(zip(names, self.options.factors(len(names), num_steps), strict=True))
        # The first net decides for all, as in diffusers.
        pools = next(iter(self.nets.values())).config["global_pool_conditions"]
        for name, acts, images in zip(self.nets, factors.values(), self.images, strict=True):
            for line in stretched(images, size, f"the control image of {name}"):
                warn_of_call(line)
            if not acts.any():
                warn_of_call(
                    f"ControlNet {name}: its scale is 0, or no step of {num_steps} lies within its "
                    "window, so it has no effect"
                )
        if self.options.guess_mode and guidance_scale <= 1:
            warn_of_call(
                "guess_mode without guidance only weakens the residuals; it is made for guidance"
            )
        return Control(names, tuple(pixels), factors, self.options.guess_mode or pools)

    def in_front(
        self, model: Model, method: Method | None, control: Control, guided: bool
    ) -> tuple[nnx.Module, WithControlNets]:
        """(module, method) for the sampler: the method's own, after the nets."""
        module = denoiser_module(model, method)
        module.controlnets = nnx.List(list(self.nets.values()))
        return module, WithControlNets(method, control.names, guided, control.guess_mode)


class WithControls:
    """A pipeline's ControlNets: load, unload.

    Attributes:
        controlnets: ControlNets.
    """

    controlnets: ControlNets

    def load_controlnet(self, path: str | Path, *, name: str | None = None) -> None:
        """Load a ControlNet for SDXL; then pass ``control_image`` when calling.

        Call it again for a second one; their effects add up. It acts with every method and without
        one; its cross-attention reads the prompt as the UNet's does, identity included.

        Args:
            path: diffusers' directory, its weight file alone, or a training run of the method
                controlnet.
            name: its name in messages; by default ``str(path)``. One of the same name is replaced,
                with a warning.

        Raises:
            WeightsError: the path does not exist, or holds no ControlNet for this base; loaded ones
                do not change.
        """
        check_path("path", path)
        check_kinds(str, "a name", name=name)
        name = str(path) if name is None else name
        if name in self.controlnets.nets:
            warn_of_call(
                f"ControlNet {name}: replaces the one of that name; give name= to keep both"
            )
        self.controlnets.load(path, name)
        kind = "run" if is_run(Path(path)) else "controlnet"
        say_terms(f"ControlNet {path}", str(path), kind)

    def unload_controlnet(self, name: str | None = None) -> None:
        """Remove the ControlNet of this name, or all."""
        self.controlnets.unload(name)
