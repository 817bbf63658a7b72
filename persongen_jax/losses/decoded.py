"""Decodes what a prediction implies, and judges it: the losses of ``config.losses``."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch, Field
from persongen_jax.diffusion.schedule import NoiseSchedule
from persongen_jax.losses.base import Decoded, DecodedLoss, Settings
from persongen_jax.losses.clip import Similarity
from persongen_jax.losses.identity import Identity
from persongen_jax.losses.keypoints import Keypoints, Proportions
from persongen_jax.losses.reconstruction import Reconstruction
from persongen_jax.models.sdxl.parts import LOSS_NETWORKS

LOSSES: dict[str, type[DecodedLoss]] = {
    loss.name: loss for loss in (Reconstruction, Keypoints, Proportions, Similarity, Identity)
}


class DecodedLosses:
    """The losses that a config adds; without any, it adds nothing and costs nothing.

    Args:
        config: ``losses``, a table {name: {"weight": ..., "noise_from": ..., "noise_to": ...}};
            ``losses_downscale``; the keys of the losses' networks; ``trigger_word``.
        schedule: of the diffusion, whose noise levels the windows mean.
        abstract: only shapes are made; a missing file's may be the published ones.

    Raises:
        ValueError: an unknown loss or setting, a weight that is not above 0, a window without a
            noise level, a network that is not named.
        MissingFile, WeightsError: files that are opened before the networks, such as a tokenizer.
    """

    def __init__(self, config: ConfigDict, schedule: NoiseSchedule, *, abstract: bool = False):
        table = config.get("losses", None) or {}
        self.settings = {name: read_settings(name, own, schedule) for name, own in table.items()}
        self.losses: dict[str, Any] = {
            name: LOSSES[name](config, abstract=abstract) for name in self.settings
        }
        # Losses with one network, by the name of the first, under which the model has it.
        first: dict[str, str] = {}
        self.holders = {
            name: first.setdefault(loss.net_key, name)
            for name, loss in self.losses.items()
            if loss.net_key
        }
        self.downscale = config.get("losses_downscale", 1)
        self.trigger_word = config.get("trigger_word", "")

    def __bool__(self) -> bool:
        return bool(self.losses)

    def attach(self, model: Any) -> None:
        """Add the losses' frozen networks to the model, which is where judges are compared.

        Networks of one name in the config are loaded once.
        """
        networks = nnx.Module()
        for name in dict.fromkeys(self.holders.values()):
            setattr(networks, name, self.losses[name].network())
        if self.holders:
            setattr(model, LOSS_NETWORKS, networks)

    def fields(self, known: set[str]) -> tuple[Field, ...]:
        """What the losses read of an example, other than fields of a ``known`` name."""
        found: dict[str, Field] = {}
        for loss in self.losses.values():
            for field in loss.fields(self.trigger_word):
                found.setdefault(field.name, field)
        return tuple(field for name, field in found.items() if name not in known)

    def network_of(self, model: Any, name: str) -> Any:
        """The loss' network in the model, perhaps added for another loss; None if it has none."""
        if name not in self.holders:
            return None
        return getattr(getattr(model, LOSS_NETWORKS), self.holders[name])

    def __call__(self, model: Any, batch: Batch, step: Any, decode: Callable, factor: int) -> dict:
        """{"loss_NAME": [b], its contribution to the loss; "loss_NAME_rows": [b], 1 where it acts}.

        Each network runs again in the backward pass, one after the other; ``decode`` should do so
        layer by layer. One checkpoint around all of it would save nothing: it is the end of the
        forward pass, so that all of its activations would be there again at once.

        Args:
            step: systems.diffusion.Step. decode: maps latents to images in 0..1, differentiable.
            factor: side of an image in pixels over side of its latents.
        """
        if not self:
            return {}
        signal = jnp.asarray(step.schedule.alphas_cumprod)[step.timesteps]
        noise = jnp.sqrt(1 - signal)
        inside = {
            name: (noise >= own.noise_from) & (noise <= own.noise_to)
            for name, own in self.settings.items()
        }
        some = jnp.any(jnp.stack(list(inside.values())), axis=0)
        # x̂₀ may not be finite at noise levels that no window contains: those rows decode the
        # target instead, so that neither values nor gradients become NaN.
        safe = dataclasses.replace(step, timesteps=jnp.where(some, step.timesteps, 0))
        latents = jnp.where(some[:, None, None, None], safe.x0(), step.latents)
        b, h, w, _ = latents.shape
        reads_target = any(loss.reads_target for loss in self.losses.values())
        target = self._target(batch, step, decode) if reads_target else None

        images = decode(reduced(latents, self.downscale))
        sides = h * factor, w * factor
        dropped = jnp.zeros(b, bool) if step.drop is None else step.drop

        out = {}
        for name, loss in self.losses.items():
            judge = functools.partial(_judge, loss, self.network_of(model, name))
            judged = jax.checkpoint(functools.partial(judge, sides, target, batch))
            values, comparable = judged(images)
            acts = inside[name] & comparable
            if loss.reads_condition:
                acts &= ~dropped
            out[f"loss_{name}"] = jnp.where(acts, self.settings[name].weight * values, 0)
            out[f"loss_{name}_rows"] = acts.astype(jnp.float32)
        return out

    def _target(self, batch, step, decode):
        """The target's images as the losses see them, [b, h, w, 3] in 0..1."""
        if "pixel_values" in batch:
            return reduced(batch["pixel_values"] / 2 + 0.5, self.downscale)
        return jax.lax.stop_gradient(decode(reduced(step.latents, self.downscale)))


def _judge(loss, network, sides, target, batch, images):
    return loss(network, Decoded(images, sides, lambda: target, batch))


def add_to(losses: dict, terms: dict) -> dict:
    """A method's losses with these terms added to "loss", and logged."""
    if not terms:
        return losses
    added = sum(value for name, value in terms.items() if not name.endswith("_rows"))
    return {**losses, "loss": losses["loss"] + added, **terms}


def reduced(cells: jax.Array, factor: int) -> jax.Array:
    """[b, h, w, c] averaged over squares of ``factor`` cells.

    Raises:
        ValueError: the sides are not multiples of it.
    """
    if factor == 1:
        return cells
    b, h, w, c = cells.shape
    if h % factor or w % factor:
        raise ValueError(
            f"config.losses_downscale={factor}: latents of {h} x {w} cannot be divided by it; give "
            "1, or another power of 2"
        )
    return cells.reshape(b, h // factor, factor, w // factor, factor, c).mean((2, 4))


def read_settings(name: str, table: Any, schedule: NoiseSchedule) -> Settings:
    """One entry of ``config.losses``; ValueError says in one sentence what is wrong with it."""
    where = f"config.losses: {name}"
    if name not in LOSSES:
        raise ValueError(f"config.losses: {name!r} is unknown; known: {', '.join(LOSSES)}")
    if not hasattr(table, "items"):
        raise ValueError(f'{where} is {table!r}; give a table such as {{"weight": 0.1}}')
    own = dict(table)
    unknown = sorted(own.keys() - set(Settings._fields))
    if unknown:
        raise ValueError(
            f"{where} has no setting {', '.join(unknown)}; known: {', '.join(Settings._fields)}"
        )
    if "weight" not in own:
        raise ValueError(f"{where} has no weight; give one above 0, such as 0.1")
    for key, value in own.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
            raise ValueError(f"{where}: {key} is {value!r}; give a finite number")
    settings = Settings(**own)
    if settings.weight <= 0:
        raise ValueError(
            f"{where}: weight={settings.weight:g} would only cost time; give a number above 0, or "
            "leave the loss out"
        )
    levels = np.sqrt(1 - np.asarray(schedule.alphas_cumprod, np.float64))
    if not ((levels >= settings.noise_from) & (levels <= settings.noise_to)).any():
        raise ValueError(
            f"{where}: no noise level of the schedule is from {settings.noise_from:g} to "
            f"{settings.noise_to:g}; they go from {levels.min():.3f} to {levels.max():.3f}"
        )
    usable = schedule.alphas_cumprod > 0
    if schedule.prediction_type == "epsilon" and not usable[levels <= settings.noise_to].all():
        raise ValueError(
            f"{where}: at noise level 1 a prediction of noise implies no image; give a noise_to "
            "below 1"
        )
    return settings
