"""Draws people with variations, and returns images with their ground truth."""

from dataclasses import dataclass, replace

import numpy as np

from data_pipeline.drawing.body import DRESS, SHIRT, occluded, paint_body, paint_phone
from data_pipeline.drawing.canvas import Canvas
from data_pipeline.drawing.captions import captions_of, labels_of
from data_pipeline.drawing.faults import Faults
from data_pipeline.drawing.features import paint_features
from data_pipeline.drawing.hats import paint_hat
from data_pipeline.drawing.head import face, paint_back_hair, paint_face, paint_front_hair
from data_pipeline.drawing.identities import Identities
from data_pipeline.drawing.pictures import POSES, Pictures
from data_pipeline.drawing.pose import Pose, face_outline, pose_of
from data_pipeline.drawing.scenes import paint_scenes

BATCH = 128  # images in memory at once as float32


@dataclass(frozen=True)
class People:
    """Images and everything that is known about them.

    images [n, s, s, 3] uint8; identity [n] names. Boxes and points are in pixels, x then y, (0, 0)
    the outer corner of the first pixel: face_box [n, 4] (x0, y0, x1, y1), inside the frame;
    landmarks [n, 5, 2] in ArcFace's order (eyes, tip of the nose, corners of the mouth, left to
    right in the image); keypoints [n, 12, 2] COCO's 5 to 16 (the person's left before the right
    one), with visibility [n, 12] bool. captions, backgrounds and bodies are texts, attributes names
    and flags per image (captions.labels_of).
    """

    images: np.ndarray
    identity: np.ndarray
    face_box: np.ndarray
    landmarks: np.ndarray
    keypoints: np.ndarray
    visibility: np.ndarray
    captions: list[str]
    backgrounds: list[str]
    bodies: list[str]
    attributes: dict[str, np.ndarray]

    def __len__(self):
        return len(self.images)


def render(
    people: Identities, pictures: Pictures, size: int = 64, faults: Faults | None = None
) -> People:
    """Draw person i with variation i; image i does not depend on the others.

    ``faults`` spoils faces; the ground truth remains that of the faces without them.
    """
    if len(people) != len(pictures):
        raise ValueError(f"{len(people)} people for {len(pictures)} pictures: one each is needed")
    pictures = _fitting(people, pictures)
    pose = pose_of(people, pictures)
    images = np.empty((len(people), size, size, 3), np.uint8)
    for start in range(0, len(people), BATCH):
        rows = slice(start, start + BATCH)
        spoiled = None if faults is None else faults.take(rows)
        images[rows] = _paint(
            people.take(rows), pictures.take(rows), pose.take(rows), size, spoiled
        )

    outline = pose.to_frame(face_outline(people))
    face_box = np.concatenate([outline.min(1), outline.max(1)], axis=1)
    keypoints = pose.keypoints
    inside = ((keypoints > 0) & (keypoints < 1)).all(-1)
    visibility = inside & ~occluded(pictures)
    doing = _seen_doing(pictures, visibility)
    general, background, body = captions_of(people, pictures, doing)
    return People(
        images=images,
        identity=people.name,
        face_box=(np.clip(face_box, 0, 1) * size).astype(np.float32),
        landmarks=(pose.landmarks * size).astype(np.float32),
        keypoints=(keypoints * size).astype(np.float32),
        visibility=visibility,
        captions=general,
        backgrounds=background,
        bodies=body,
        attributes=labels_of(people, pictures, doing),
    )


def render_masks(
    people: Identities, pictures: Pictures, size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """How much of each pixel of ``render``'s images shows the person, and how much the face.

    Returns:
        (person, face), [n, size, size] uint8 each, 255 where nothing else is seen. The person's
        includes clothes, hat, and phone; the face's is inside the face's outline, with beard and
        glasses, without hair, hat, or hand over it.
    """
    pictures = _fitting(people, pictures)
    pose = pose_of(people, pictures)
    masks = np.empty((2, len(people), size, size), np.uint8)
    for start in range(0, len(people), BATCH):
        rows = slice(start, start + BATCH)
        who, which, where = people.take(rows), pictures.take(rows), pose.take(rows)
        for mask, paint in zip(masks, (_paint_person, _paint_over_face), strict=True):
            mask[rows] = _coverage(paint, who, which, where, size)
    return masks[0], masks[1]


def _coverage(paint, who, which, where, size):
    """What of a white backdrop minus a black one ``paint`` hides, [n, size, size] uint8."""
    seen = []
    for backdrop in (0, 1):
        canvas = Canvas.blank(len(who), size)
        if paint is _paint_person:
            canvas.pixels[:] = backdrop
        else:  # the face itself is the backdrop
            space = canvas.space(where.x, where.y, where.unit, where.tilt)
            canvas.paint(space, face(space, who), (backdrop,) * 3)
        paint(canvas, who, which, where)
        seen.append(canvas.pixels[:, 0])
    through = seen[1] - seen[0]
    covered = 1 - through if paint is _paint_person else through
    return np.rint(255 * np.clip(covered, 0, 1)).astype(np.uint8)


def _fitting(people: Identities, pictures: Pictures) -> Pictures:
    """Dresses are for women and girls; others get shirts instead."""
    misfit = (pictures.clothes == DRESS) & ~people.feminine
    return replace(pictures, clothes=np.where(misfit, SHIRT, pictures.clothes))


def _seen_doing(pictures: Pictures, visibility):
    """[n] names of poses; "arms down" if the arms in question are not visible."""
    left, right = visibility[:, 4], visibility[:, 5]
    raised = np.where(pictures.pose_side > 0, left, right)
    seen = np.choose(pictures.pose, [raised, left & right, raised, np.ones_like(left)])
    return np.array(POSES)[np.where(seen, pictures.pose, 0)]


def _paint(
    people: Identities, pictures: Pictures, pose: Pose, size: int, faults: Faults | None = None
):
    """[n, s, s, 3] uint8, drawn from back to front."""
    canvas = Canvas.blank(len(people), size)
    paint_scenes(canvas, pictures)
    images = np.empty((len(people), size, size, 3), np.uint8)
    for part, rows in canvas.chunks():
        who, which, where = people.take(rows), pictures.take(rows), pose.take(rows)
        _paint_person(part, who, which, where, None if faults is None else faults.take(rows))
        _light(part, which)
        np.minimum(part.pixels, 1, out=part.pixels)
        part.pixels *= 255
        part.pixels += np.float32(0.5)
        images[rows] = part.pixels.astype(np.uint8).transpose(0, 2, 3, 1)
    return images


def _paint_person(canvas: Canvas, who, which, where, faults: Faults | None = None) -> None:
    paint_back_hair(canvas, who, which, where)
    paint_body(canvas, who, which, where)
    paint_face(canvas, who, which, where)
    paint_features(canvas, who, which, where, faults)
    _paint_over_face(canvas, who, which, where)


def _paint_over_face(canvas: Canvas, who, which, where) -> None:
    paint_front_hair(canvas, who, which, where)
    paint_hat(canvas, who, which, where)
    paint_phone(canvas, who, which, where)


def _light(canvas: Canvas, pictures: Pictures) -> None:
    """Brightness, warmth, and a gradient from the lit side to the other."""
    gain = pictures.brightness[:, None] * (1 + pictures.warmth[:, None] * np.array([1, 0, -1]))
    slope = pictures.light_strength * np.stack([np.cos(a := pictures.light_angle), np.sin(a)])
    column, line = (s.astype(np.float32)[:, None, None] for s in slope)
    # Light from the side without the shadow: head.paint_face darkens along the same angle.
    shade = 1 - column * (canvas.x - np.float32(0.5)) - line * (canvas.y - np.float32(0.5))
    for channel in range(3):
        canvas.pixels[:, channel] *= shade * gain[:, channel].astype(np.float32)[:, None, None]
