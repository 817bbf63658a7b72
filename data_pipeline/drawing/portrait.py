"""Draws people with variations, and returns images with their ground truth."""

from dataclasses import dataclass, replace

import numpy as np

from data_pipeline.drawing.body import DRESS, SHIRT, occluded, paint_body, paint_phone
from data_pipeline.drawing.canvas import Canvas
from data_pipeline.drawing.captions import captions_of, labels_of
from data_pipeline.drawing.features import paint_features
from data_pipeline.drawing.hats import paint_hat
from data_pipeline.drawing.head import paint_back_hair, paint_face, paint_front_hair
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


def render(people: Identities, pictures: Pictures, size: int = 64) -> People:
    """Draw person i with variation i; image i does not depend on the others."""
    if len(people) != len(pictures):
        raise ValueError(f"{len(people)} people for {len(pictures)} pictures: one each is needed")
    pictures = _fitting(people, pictures)
    pose = pose_of(people, pictures)
    images = np.empty((len(people), size, size, 3), np.uint8)
    for start in range(0, len(people), BATCH):
        rows = slice(start, start + BATCH)
        images[rows] = _paint(people.take(rows), pictures.take(rows), pose.take(rows), size)

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


def _paint(people: Identities, pictures: Pictures, pose: Pose, size: int):
    """[n, s, s, 3] uint8, drawn from back to front."""
    canvas = Canvas.blank(len(people), size)
    paint_scenes(canvas, pictures)
    images = np.empty((len(people), size, size, 3), np.uint8)
    for part, rows in canvas.chunks():
        who, which, where = people.take(rows), pictures.take(rows), pose.take(rows)
        paint_back_hair(part, who, which, where)
        paint_body(part, who, which, where)
        paint_face(part, who, which, where)
        paint_features(part, who, which, where)
        paint_front_hair(part, who, which, where)
        paint_hat(part, who, which, where)
        paint_phone(part, who, which, where)
        _light(part, which)
        np.minimum(part.pixels, 1, out=part.pixels)
        part.pixels *= 255
        part.pixels += np.float32(0.5)
        images[rows] = part.pixels.astype(np.uint8).transpose(0, 2, 3, 1)
    return images


def _light(canvas: Canvas, pictures: Pictures) -> None:
    """Brightness, warmth, and a gradient from the lit side to the other."""
    gain = pictures.brightness[:, None] * (1 + pictures.warmth[:, None] * np.array([1, 0, -1]))
    slope = pictures.light_strength * np.stack([np.cos(a := pictures.light_angle), np.sin(a)])
    column, line = (s.astype(np.float32)[:, None, None] for s in slope)
    # Light from the side without the shadow: head.paint_face darkens along the same angle.
    shade = 1 - column * (canvas.x - np.float32(0.5)) - line * (canvas.y - np.float32(0.5))
    for channel in range(3):
        canvas.pixels[:, channel] *= shade * gain[:, channel].astype(np.float32)[:, None, None]
