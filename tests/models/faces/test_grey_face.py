"""What EVA-CLIP sees of a face, against the authors' numbers, and the ellipse."""

import jax.numpy as jnp
import numpy as np

from data_pipeline.examples.identity.portraits import OUTSIDE
from data_pipeline.pictures.transforms import CLIP_MEAN, CLIP_STD
from persongen_jax.models.faces.grey_face import (
    cubic_weights,
    face_ellipse,
    grey_on_white,
    resize_bicubic,
)
from tests.helpers.published_goldens import golden, relative_gap


def test_as_the_original_prepares_a_face():
    arrays = golden("pulid_v1_pipeline")[1]
    crop, labels = arrays["in/face_crop_bgr_0"][..., ::-1] / 255, arrays["in/parsing_labels_0"]
    kept = ~np.isin(labels, OUTSIDE)
    grey = grey_on_white(jnp.asarray(crop[None], jnp.float32), jnp.asarray(kept[None]))
    shown = np.asarray(grey[0]) * 255
    assert np.abs(shown - arrays["out/face_features_image_0"]).max() <= 1  # stored in 8 bits
    size = arrays["out/eva_input_0"].shape[-1]
    seen = (resize_bicubic(grey, size) - CLIP_MEAN) / CLIP_STD
    assert relative_gap(np.moveaxis(seen, -1, 1), arrays["out/eva_input_0"]) < 1e-5


def test_cubic_weights_keep_constants_and_size():
    for length, size in ((512, 336), (96, 24), (5, 9)):
        assert np.allclose(cubic_weights(length, size).sum(1), 1, atol=1e-6)
    assert np.allclose(cubic_weights(7, 7), np.eye(7), atol=1e-7)


def test_the_ellipse_holds_eyes_and_mouth_and_no_corner():
    from data_pipeline.faces.ffhq import FFHQ_TEMPLATE

    inside = face_ellipse(512)
    x, y = np.rint(FFHQ_TEMPLATE).astype(int).T
    assert inside[y, x].all() and not inside[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert 0.35 < inside.mean() < 0.5
