"""The geometry of head and body in the frame, and the ground truth.

A head's own coordinates: origin in the middle of the face, unit half the face's height, x right and
y down, tilted with the head. The body's: the same origin and unit, not tilted.
"""

from dataclasses import dataclass

import numpy as np

from data_pipeline.drawing.identities import Identities
from data_pipeline.drawing.pictures import EXPRESSIONS, Pictures
from data_pipeline.drawing.rows import Rows

DEPTH = 0.9  # depth of the features' round surface in half widths: how far a turn moves them
# expression: mouth curve, opening, width; brows up, brows' outer ends up; eyes' opening
EXPRESSION_SHAPES = {
    "neutral": (0.0, 0.0, 1.0, 0.0, 0.0, 1.0),
    "smiling": (0.13, 0.0, 1.18, 0.02, 0.0, 0.95),
    "laughing": (0.13, 0.15, 1.15, 0.05, 0.0, 0.8),
    "surprised": (0.0, 0.2, 0.62, 0.13, 0.0, 1.35),
    "angry": (-0.09, 0.0, 0.95, -0.05, 0.34, 0.85),
    "sad": (-0.12, 0.0, 0.9, 0.03, -0.34, 0.85),
}
SHAPES = np.array([EXPRESSION_SHAPES[name] for name in EXPRESSIONS])
SHOULDERS, HIPS, KNEES, ANKLES = 1.72, 4.0, 5.75, 7.4  # heights below the face's middle
UPPER_ARM, FOREARM = 1.25, 1.2


@dataclass(frozen=True)
class Pose(Rows):
    """Head features in head coordinates and body joints in body coordinates; [n, ...] each.

    ``eyes`` and ``brows`` [n, 2, 2] are (x, y) of the left and the right one in the image;
    ``squeeze`` [n, 2] is how much a turn narrows that side. ``joints`` [n, 12, 2] are COCO's
    keypoints 5 to 16; a person's left is on the image's right.
    """

    x: np.ndarray
    y: np.ndarray
    unit: np.ndarray
    tilt: np.ndarray
    shift: np.ndarray
    lift: np.ndarray
    eyes: np.ndarray
    squeeze: np.ndarray
    eye_opening: np.ndarray
    brows: np.ndarray
    brow_angle: np.ndarray
    nose: np.ndarray
    mouth: np.ndarray
    mouth_width: np.ndarray
    mouth_curve: np.ndarray
    mouth_opening: np.ndarray
    joints: np.ndarray

    def to_frame(self, points: np.ndarray) -> np.ndarray:
        """Head coordinates [n, k, 2] to the frame's, in sides."""
        cos, sin = np.cos(self.tilt)[:, None], np.sin(self.tilt)[:, None]
        u, v = points[..., 0], points[..., 1]
        turned = np.stack([u * cos - v * sin, u * sin + v * cos], axis=-1)
        return np.stack([self.x, self.y], -1)[:, None] + self.unit[:, None, None] * turned

    @property
    def landmarks(self) -> np.ndarray:
        """[n, 5, 2] in sides: the eyes, the tip of the nose, the corners of the mouth."""
        half = self.mouth_width[:, None] * np.array([-1, 1])
        corner_y = (self.mouth[:, 1] - CORNER * self.mouth_curve)[:, None]
        corners = np.stack([self.mouth[:, :1] + half, corner_y + 0 * half], axis=-1)
        return self.to_frame(np.concatenate([self.eyes, self.nose[:, None], corners], axis=1))

    @property
    def keypoints(self) -> np.ndarray:
        """[n, 12, 2] in sides."""
        return np.stack([self.x, self.y], -1)[:, None] + self.unit[:, None, None] * self.joints


CORNER = 0.6  # a mouth's corners rise by this fraction of its curve, its middle sinks by the rest


def pose_of(people: Identities, pictures: Pictures) -> Pose:
    """The poses of people with variations, row by row."""
    curve, opening, mouth_factor, brows_up, brows_out, eye_factor = SHAPES[pictures.expression].T
    strength = pictures.strength
    width = people.face_width

    # The face's features lie on a round surface: a turn moves the middle most, and narrows the side
    # that turns away.
    def turned(x):
        angle = np.arcsin(np.clip(x / (DEPTH * width), -1, 1)) + 0.6 * pictures.turn
        return DEPTH * width * np.sin(angle)

    lift = 0.35 * pictures.pitch
    eye_y = people.eye_height + lift
    eyes = np.stack([turned(-people.eye_spacing), turned(people.eye_spacing)], axis=1)
    squeeze = 1 - 0.3 * pictures.turn[:, None] * np.array([-1, 1])
    nose_y = people.eye_height + people.nose_length + 1.15 * lift
    nose_x = turned(0 * width) * 1.25  # it protrudes, so it moves further
    mouth_y = np.minimum(people.eye_height + people.nose_length + people.mouth_height, 0.74) + lift
    mouth_width = people.mouth_width * (1 + (mouth_factor - 1) * np.minimum(strength, 1))
    brow_gap = people.brow_gap + brows_up * strength
    eyes = np.stack([eyes, np.stack([eye_y, eye_y], 1)], axis=-1)
    return Pose(
        x=pictures.face_x,
        y=pictures.face_y,
        unit=pictures.unit,
        tilt=pictures.tilt,
        shift=turned(0 * width),
        lift=lift,
        eyes=eyes,
        squeeze=np.minimum(squeeze, 1.05),
        eye_opening=people.eye_opening * (1 + (eye_factor - 1) * strength),
        brows=eyes - np.stack([0 * brow_gap, brow_gap], axis=1)[:, None],
        brow_angle=people.brow_angle * (1 - 0.6 * (brows_out != 0)) + brows_out * strength,
        nose=np.stack([nose_x, nose_y], axis=1),
        mouth=np.stack([turned(0 * width) * 1.05, mouth_y], axis=1),
        mouth_width=mouth_width,
        mouth_curve=curve * strength,
        mouth_opening=opening * strength,
        joints=_joints(people, pictures),
    )


def face_outline(people: Identities, points: int = 48) -> np.ndarray:
    """[n, points, 2] on the edge of the face in head coordinates, shaped like head.face."""
    angle = np.arange(points) * (2 * np.pi / points)
    cos, sin = np.cos(angle), np.sin(angle)
    square = np.where(sin > 0, 1.0, 0.0) * people.chin[:, None]
    radius = 1 / (1 - square + square * np.sqrt(np.sqrt(cos**4 + sin**4)))
    p, q = radius * cos, radius * sin
    half = people.face_width[:, None] * (1 - people.taper[:, None] * q)
    return np.stack([p * half, q], axis=-1)


def _joints(people: Identities, pictures: Pictures):
    """[n, 12, 2] in body coordinates: shoulders, elbows, wrists, hips, knees, ankles."""
    n = len(people)
    joints = np.zeros((n, 12, 2))
    raised = np.isin(pictures.pose, (2, 3))
    for place, side in enumerate((1, -1)):  # the person's left is on the image's right
        shoulder = np.stack([side * people.build, np.full(n, SHOULDERS)], 1)
        elbow_angle, wrist_angle = _arm_angles(pictures, raised & (pictures.pose_side == side))
        outward = np.array([side, 1])
        elbow = shoulder + UPPER_ARM * outward * _direction(elbow_angle)
        wrist = elbow + FOREARM * outward * _direction(wrist_angle)
        # The phone is held next to the jaw, wherever the elbow is.
        phone = (pictures.pose == 3) & (pictures.pose_side == side)
        ear = np.stack([side * (people.face_width + 0.22), np.full(n, 0.55)], 1)
        wrist = np.where(phone[:, None], ear, wrist)
        hip = np.stack([side * (0.45 + 0.3 * people.build), np.full(n, HIPS)], 1)
        knee = np.stack([hip[:, 0] * 1.02, np.full(n, KNEES)], 1)
        ankle = np.stack([hip[:, 0] * 1.05, np.full(n, ANKLES)], 1)
        joints[:, place::2] = np.stack([shoulder, elbow, wrist, hip, knee, ankle], axis=1)
    return joints


def _direction(angle):
    """[n] angles from straight down, outwards positive, to [n, 2] unit steps."""
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)


def _arm_angles(pictures: Pictures, raised):
    """Of the upper arm and the forearm, [n] each."""
    sway = 0.25 * (pictures.detail[:, 11] - 0.5)
    upper = np.choose(pictures.pose, [0.15, 0.75, 0.15, 0.15]) + 0.5 * sway
    lower = np.choose(pictures.pose, [0.05, -0.85, 0.05, 0.05]) + sway
    waving, phone = raised & (pictures.pose == 2), raised & (pictures.pose == 3)
    upper = np.where(waving, 1.0 + sway, np.where(phone, 0.35, upper))
    lower = np.where(waving, 2.95 + sway, lower)
    return upper, lower
