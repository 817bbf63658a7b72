"""FFHQ's alignment against OpenCV's, which facexlib uses; labels that go with the crop."""

import numpy as np
import pytest

from data_pipeline.examples.fields import Call, FieldError
from data_pipeline.examples.identity.portraits import Portraits
from data_pipeline.faces.face import Face
from data_pipeline.faces.ffhq import (
    BORDER,
    FFHQ_TEMPLATE,
    align_ffhq,
    align_labels,
    robust_similarity,
)


def landmarks_at(scale, angle, shift, noise=0.0, seed=0):
    """The template under a similarity, with noise, origin "centre"."""
    turn = scale * np.exp(1j * angle)
    there = (FFHQ_TEMPLATE[:, 0] + 1j * FFHQ_TEMPLATE[:, 1]) * turn + complex(*shift)
    points = np.stack([there.real, there.imag], 1)
    return points + np.random.default_rng(seed).normal(size=points.shape) * noise


def test_as_facexlib_aligns_with_opencv():
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(1).integers(0, 256, (300, 260, 3), np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 3)
    for seed in range(4):
        points = landmarks_at(0.5, 0.3, (10, -30), noise=0.6, seed=seed)
        matrix, _ = cv2.estimateAffinePartial2D(points, FFHQ_TEMPLATE, method=cv2.LMEDS)
        turn, shift = robust_similarity(points, FFHQ_TEMPLATE)
        ours = np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])
        corners = np.array([[0, 0, 1], [259, 299, 1]]).T
        # OpenCV tries random pairs of landmarks, not all: within the noise, not equal.
        assert np.abs(ours @ corners - matrix @ corners).max() < 8
        wanted = cv2.warpAffine(
            image, ours, (512, 512), borderMode=cv2.BORDER_CONSTANT, borderValue=BORDER
        )
        found = align_ffhq(image, points, origin="centre")
        inside = np.abs(found.astype(int) - wanted.astype(int))
        assert inside.max() <= 4 and np.mean(inside) < 0.3  # OpenCV rounds places to 1 / 32
    assert (found == np.rint(BORDER).astype(np.uint8)).all(-1).any()


def test_a_landmark_that_does_not_fit_is_left_out():
    points = landmarks_at(0.7, -0.2, (5, 40))
    right = robust_similarity(points, FFHQ_TEMPLATE)
    wrong = points.copy()
    wrong[2] += 60
    assert np.allclose(robust_similarity(wrong, FFHQ_TEMPLATE), right, atol=1e-6)
    assert np.isclose(abs(right[0]), 1 / 0.7)
    with pytest.raises(ValueError, match="coincide"):
        robust_similarity(np.zeros((5, 2)), FFHQ_TEMPLATE)


def test_labels_are_cut_as_the_image_is():
    labels = np.zeros((200, 180), np.uint8)
    labels[60:140, 50:130] = 17
    image = np.repeat(labels[..., None] * 10, 3, 2)
    points = landmarks_at(0.3, 0.1, (5, 10)) + 0.5
    crop, cut = align_ffhq(image, points, 256), align_labels(labels, points, 256)
    assert cut.shape == (256, 256) and set(np.unique(cut)) == {0, 17}
    assert ((crop[..., 0] > 160) == (cut == 17)).mean() > 0.99


def field_of(face):
    call = Call(["a"], {}, [[[face]]], np.zeros((1, 6), np.float32), (64, 64))
    return Portraits(32).given(call)


def test_the_field_of_a_call():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    labels = np.tile(np.arange(19, dtype=np.uint8)[:, None], (1, 32))
    labels = np.concatenate([labels, np.zeros((13, 32), np.uint8)])
    arrays = field_of(Face(image, embedding=np.ones(3), labels=labels))
    assert arrays["portrait_mask"].tolist() == [[True, False, False, False]]
    kept = arrays["portrait_kept"][0, 0]
    outside = [0, 7, 8, 9, 14, 15, 16, 18, *range(19, 32)]  # all but the face and the hair
    assert [row for row in range(32) if not kept[row].any()] == outside and kept[17].all()
    assert not field_of(Face(image))["portrait_labelled"].any()
    given = {k: v for k, v in arrays.items() if k in Portraits(32).spec((64, 64))}
    dropped = Portraits(32).dropped(given, np)
    assert dropped["portrait_dropped"].all() and "portrait_mask" not in dropped
    assert not Portraits(32).absent(given, np)["portrait_mask"].any()
    with pytest.raises(FieldError, match="whole numbers for the 32x32 pixels of its image"):
        field_of(Face(image, labels=labels[:20]))
    with pytest.raises(FieldError, match="labels from 19 to 19; .* gives 0 to 18"):
        field_of(Face(image, labels=np.full((32, 32), 19)))
