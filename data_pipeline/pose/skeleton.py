"""Skeletons as OpenPose draws them, which ControlNets for poses read (controlnet_aux's order).

Person after person: limbs in 60 % of their colour, then joints. DWPose draws the limbs of all
people before the first joint, so its pictures differ where people overlap.
"""

import numpy as np
from numpy.typing import ArrayLike

from data_pipeline.pose.body18 import COLOURS, COUNT, LIMBS
from data_pipeline.pose.limbs import PUBLISHED, Widths, check_points, fill_limb
from data_pipeline.pose.raster import fill_disc

DIMMED = 0.6  # of a limb's colour


def draw_body18(
    people: ArrayLike, seen: ArrayLike, height: int, width: int, widths: Widths = PUBLISHED
) -> np.ndarray:
    """Skeletons on black, uint8 RGB [height, width, 3].

    Args:
        people: [n, 18, 2] joints (x, y) in pixels, origin "corner" (body18.NAMES); they may lie
            outside of the image. n may be 0.
        seen: [n, 18] bool; a joint that is not is left out with its limbs, wherever it is.
        widths: limbs.widths_for gives what suits a size; the default is the published 4 and 4.

    Raises:
        ValueError: other shapes, or a seen joint that is no place (NaN, or far away).
    """
    people, seen = np.asarray(people, np.float64), np.asarray(seen, bool)
    if people.ndim != 3 or people.shape[1:] != (COUNT, 2) or seen.shape != people.shape[:2]:
        raise ValueError(
            f"joints of shape {people.shape}, seen of {seen.shape}: (n, {COUNT}, 2) and "
            f"(n, {COUNT}) are needed"
        )
    check_points(people, seen)
    image = np.zeros((height, width, 3), np.uint8)
    for joints, there in zip(people, seen, strict=True):
        for (first, second), colour in zip(LIMBS, COLOURS, strict=False):
            if there[first] and there[second]:
                dimmed = tuple(int(part * DIMMED) for part in colour)
                fill_limb(image, joints[first], joints[second], widths.half_width, dimmed)
        for (x, y), shown, colour in zip(joints.tolist(), there, COLOURS, strict=True):
            if shown:
                fill_disc(image, (int(x), int(y)), widths.radius, colour)
    return image
