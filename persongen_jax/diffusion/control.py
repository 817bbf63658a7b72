"""Runs ControlNets in front of the UNet, whatever the method (arXiv 2302.05543).

method = WithControlNets(method, ("control", "control_1"), guidance=True)
method.denoise(model, x, t, conditioning)  # model.controlnets; conditioning.maps by these names
"""

import functools
import operator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from persongen_jax.diffusion.conditioning import Conditioning, Residuals, deinterleave, interleave


@dataclass(frozen=True)
class WithControlNets:
    """A method's ``denoise`` after ControlNets; takes its place in the sampler.

    Attributes:
        method: a methods.base.Method; None: the base alone.
        names: of the maps that the nets of ``model.controlnets`` read, in order.
        guided: whether the rows are pairs, without and with the condition (samplers.guided).
        guess_mode: the nets run on the conditional rows alone, and are weakened toward the first
            skips.
    """

    method: Any
    names: tuple[str, ...]
    guided: bool
    guess_mode: bool = False

    def denoise(
        self,
        model: Any,
        x: jax.Array,
        t: ArrayLike,
        conditioning: Conditioning,
        step: ArrayLike | None = None,
    ) -> jax.Array:
        nets = zip(self.names, model.controlnets, strict=True)
        each = [self._residuals(net, x, t, conditioning, name) for name, net in nets]
        total = functools.reduce(operator.add, each)
        maps = {n: m for n, m in conditioning.maps.items() if n not in self.names}
        conditioning = replace(conditioning, maps=maps, residuals=total)
        if self.method is None:
            return model.unet(x, t, conditioning)
        return self.method.denoise(model, x, t, conditioning, step)

    def _residuals(self, net, x, t, conditioning, name) -> Residuals:
        if not (self.guess_mode and self.guided):
            own = conditioning.maps[name]
            return net(x, t, conditioning, own.pixels, own.scale, guess_mode=self.guess_mode)
        x, conditioning = jax.tree.map(lambda rows: deinterleave(rows, 2)[1], (x, conditioning))
        own = conditioning.maps[name]
        found = net(x, t, conditioning, own.pixels, own.scale, guess_mode=True)
        return interleave(jax.tree.map(jnp.zeros_like, found), found)
