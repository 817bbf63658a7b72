"""The arguments of a call that its ControlNets read, by diffusers' names, checked."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.pictures.reading import load_image
from persongen_jax.diffusion.options import finite, flag, fraction


@dataclasses.dataclass(frozen=True)
class ControlOptions:
    """What ControlNets read, and how much they act. With several nets each may have its own.

    Attributes:
        control_image: an image for all prompts, or a list of one each; with several nets a list
            of these, in the order in which the nets were loaded. Any image that load_image accepts
            (path, PIL image, array), RGB; resized to the image to be generated.
        controlnet_conditioning_scale: factor of what a net adds.
        control_guidance_start, control_guidance_end: fractions of the steps between which it acts.
        guess_mode: act on the conditional side alone and weakly on the first skips, so that the
            image is followed without a prompt (guidance 3 to 5 is recommended).
    """

    control_image: Any = None
    controlnet_conditioning_scale: float | Sequence[float] = 1.0
    control_guidance_start: float | Sequence[float] = 0.0
    control_guidance_end: float | Sequence[float] = 1.0
    guess_mode: bool = False

    @classmethod
    def taken(cls, named: dict) -> tuple["ControlOptions", dict]:
        """Those among ``named``; and the rest of ``named``."""
        own = {name: value for name, value in named.items() if name in CONTROL_ARGUMENTS}
        return cls(**own), {name: value for name, value in named.items() if name not in own}

    def changed(self) -> list[str]:
        """The names of those that do not have their default."""
        return [
            each.name
            for each in dataclasses.fields(self)
            if not np.array_equal(getattr(self, each.name), np.asarray(each.default))
        ]

    def factors(self, number: int, num_steps: int) -> list[np.ndarray]:
        """[num_steps] float32 for each of ``number`` nets: the scale, 0 outside its window.

        Step i is within the window if i / n >= start and (i + 1) / n <= end, as in diffusers.

        Raises:
            ValueError: a value or a number of values that does not fit.
        """
        flag("guess_mode", self.guess_mode)
        own = {
            name: _one_each(name, getattr(self, name), number)
            for name in (
                "controlnet_conditioning_scale",
                "control_guidance_start",
                "control_guidance_end",
            )
        }
        out = []
        for scale, start, end in zip(*own.values(), strict=True):
            finite("controlnet_conditioning_scale", scale)
            fraction("control_guidance_start", start)
            fraction("control_guidance_end", end)
            if start >= end:
                raise ValueError(
                    f"control_guidance_start={start:g} is not before control_guidance_end={end:g}"
                )
            i = np.arange(num_steps)
            within = (i / num_steps >= start) & ((i + 1) / num_steps <= end)
            out.append((scale * within).astype(np.float32))
        return out

    def images(self, number: int, count: int) -> list[list[np.ndarray]]:
        """Per net one image for all prompts or ``count``, uint8 RGB [h, w, 3].

        Raises:
            ValueError: a number of images that does not fit. ImageError: one cannot be read.
        """
        given = self.control_image
        if number > 1:
            if not isinstance(given, (list, tuple)) or len(given) != number:
                said = f"{len(given)} entries" if isinstance(given, (list, tuple)) else "one image"
                raise ValueError(
                    f"control_image: {said} for {number} ControlNets; give a list with one each"
                )
        else:
            given = [given]
        return [
            _images_of(own, f"control_image {k}" if number > 1 else "control_image", count)
            for k, own in enumerate(given, 1)
        ]


def fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h, w, 3] float32 in 0..1: the image stretched to ``size`` (height, width), Lanczos."""
    if image.shape[:2] != size:
        resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS)
        image = np.asarray(resized)
    return image.astype(np.float32) / 255


def stretched(images: Sequence[np.ndarray], size: tuple[int, int], name: str) -> Iterator[str]:
    """A sentence for each image with another aspect ratio than ``size`` (height, width)."""
    for n, image in enumerate(images, 1):
        (h, w), (height, width) = image.shape[:2], size
        # A pixel of the smaller one for rounding.
        if abs(h * width - w * height) > max(h, w, height, width):
            which = f"{name}, number {n}" if len(images) > 1 else name
            yield (
                f"{which} is {w}x{h} pixels and is stretched to {width}x{height}: give it this "
                "aspect ratio, or give height and width"
            )


def _one_each(name: str, given: Any, number: int) -> list[float]:
    if not isinstance(given, (list, tuple)) and np.ndim(given) == 0:
        return [given] * number
    if len(given) != number:
        raise ValueError(
            f"{name}: {len(given)} values for {number} ControlNet{'s' if number > 1 else ''}; "
            "give one number, or one each"
        )
    return list(given)


def _images_of(given: Any, name: str, count: int) -> list[np.ndarray]:
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    if len(listed) not in (1, count):
        raise ValueError(f"{name}: {len(listed)} images for {count} prompts; give one, or one each")
    several = len(listed) > 1
    return [
        load_image(each, f"{name}, number {n}" if several else name)
        for n, each in enumerate(listed, 1)
    ]


CONTROL_ARGUMENTS = frozenset(each.name for each in dataclasses.fields(ControlOptions))
