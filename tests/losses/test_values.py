"""Each loss against the same in NumPy; what it does not see costs nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from data_pipeline.drawing.people import draw_pictures, make_identities, render
from data_pipeline.faces.align import align_faces
from data_pipeline.pictures.transforms import clip_preprocess
from persongen_jax.face_detectors import KeypointsDetector
from persongen_jax.losses import identity, keypoints
from persongen_jax.losses.base import Decoded
from persongen_jax.losses.clip import Similarity, clip_pixels, cosine
from persongen_jax.losses.pose_readers import open_pose_reader
from persongen_jax.losses.reconstruction import Reconstruction
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.systems.sdxl_config import sdxl_defaults

RNG = np.random.default_rng(0)
proportion_error = jax.jit(keypoints.proportion_error)


def decoded(images, target=None, size=None, **batch):
    size = size or images.shape[1:3]
    return Decoded(jnp.asarray(images), size, lambda: jnp.asarray(target), batch)


# ---- Pixels --------------------------------------------------------------------------------------


def test_reconstruction_is_the_mean_square():
    images, target = RNG.random((2, 3, 4, 5, 3)).astype(np.float32)
    values, counted = Reconstruction(sdxl_defaults())(None, decoded(images, target))
    wanted = [np.mean([(a - b) ** 2 for a, b in zip(x.flat, y.flat, strict=True)]) for x, y in
              zip(images, target, strict=True)]  # fmt: skip
    np.testing.assert_allclose(values, wanted, rtol=1e-5)
    assert counted.all()


# ---- Joints --------------------------------------------------------------------------------------


def test_l_id_is_its_transcription():
    found, wanted = RNG.random((2, 4, 12, 2)).astype(np.float32)
    seen = RNG.random((4, 12)) < 0.6
    seen[3] = False
    values, counted = keypoints.square_distance(found, wanted, seen)
    for row in range(4):
        total = sum(
            sum((found[row, k, i] - wanted[row, k, i]) ** 2 for i in (0, 1))
            for k in range(12)
            if seen[row, k]
        )
        assert abs(values[row] - total) < 1e-5
    assert counted.tolist() == [True, True, True, False]


def test_l_id_reads_the_targets_joints_in_sides_of_the_image(tmp_path):
    """By a network: joints in pixels of the target, images of half its size."""

    class Corner(nnx.Module):
        def __call__(self, images):
            return jnp.full((len(images), 12, 2), 0.5)

    config = sdxl_defaults()
    config.loss_pose_net = "keypoints:x"
    joints = np.tile(np.float32([[40, 10]]), (1, 12, 1))
    batch = {"keypoints": joints, "keypoints_mask": np.arange(12)[None] < 3}
    given = decoded(np.zeros((1, 20, 40, 3), np.float32), size=(40, 80), **batch)
    values, _ = keypoints.Keypoints(config)(Corner(), given)
    assert values[0] == pytest.approx(3 * (0 + 0.25**2))


def plain_proportions(joints):
    """Logarithms of lengths in torsos, in float64, of bodies that are not collapsed."""
    middle = (joints[0] + joints[1]) / 2, (joints[6] + joints[7]) / 2
    torso = np.linalg.norm(middle[0] - middle[1])
    lengths = [np.linalg.norm(joints[i] - joints[j]) for i, j in keypoints.BONES]
    assert torso > keypoints.LEAST_TORSO and min(lengths) > keypoints.LEAST_BONE
    return [np.log(length / torso) for length in lengths]


def plain_huber(x):
    return x**2 if abs(x) < 0.5 else abs(x) - 0.25


def standing(n):
    """Joints of n people, in sides of the image."""
    drawn = render(make_identities("in_train", n), draw_pictures(3, n, (0, 0, 1)), 32)
    return (drawn.keypoints / 32).astype(np.float32)


def test_proportions_are_their_transcription():
    found, wanted = standing(6), standing(12)[6:]
    seen = RNG.random((6, 12)) < 0.8
    seen[:, [0, 1, 6, 7]] = True
    seen[4, 6] = False  # without a hip there is no scale
    seen[5] = False
    values, counted = proportion_error(found, wanted, seen)
    for row in range(6):
        both = plain_proportions(found[row]), plain_proportions(wanted[row])
        total = sum(
            plain_huber(a - b)
            for a, b, (i, j) in zip(*both, keypoints.BONES, strict=True)
            if seen[row, i] and seen[row, j] and row < 4
        )
        assert abs(values[row] - total) < 1e-4 * max(total, 1)
    assert counted.tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize("change", ["moved", "smaller", "turned", "an arm raised"])
def test_another_pose_does_not_change_proportions(change):
    joints, seen = standing(6), np.ones((6, 12), bool)
    angle = np.radians(100 if change == "an arm raised" else 20)
    turn = np.float32([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    other = {
        "moved": lambda: joints + np.float32([0.1, -0.05]),
        "smaller": lambda: joints * 0.7,
        "turned": lambda: joints @ turn,
        "an arm raised": lambda: np.concatenate(
            [joints[:, :2], (joints[:, 2:3] - joints[:, :1]) @ turn + joints[:, :1], joints[:, 3:]],
            axis=1,
        ),
    }[change]()
    if change == "an arm raised":  # the forearm goes along
        other[:, 4] = joints[:, 4] + other[:, 2] - joints[:, 2]
    assert np.abs(other - joints).max() > 0.03
    assert np.max(proportion_error(other.astype(np.float32), joints, seen)[0]) < 1e-6
    longer = joints.copy()
    longer[:, 10:] += np.float32([0, 0.05])
    assert np.min(proportion_error(longer, joints, seen)[0]) > 1e-3


def test_a_collapsed_body_is_bounded_and_pulled_apart():
    """A predicted torso, or a whole body, in one point; a target too small to compare with."""
    wanted, seen = standing(3), np.ones((3, 12), bool)
    found = wanted.copy()
    found[0, [0, 1, 6, 7]] = found[0, [0, 1, 6, 7]].mean(0)
    found[1] = 0.5
    # Hips a hair below the shoulders.
    found[2, [0, 1, 6, 7]] = found[2, [0, 1, 6, 7]].mean(0)
    found[2, [6, 7], 1] += 1e-3
    usual = np.max(proportion_error(wanted[[1, 2, 0]], wanted, seen)[0])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def slope(found):
        values = keypoints.proportion_error(found, wanted, seen)[0]
        return values.sum(), values

    (_, values), gradient = slope(found)
    assert usual < values.min() and values.max() < 60
    assert np.isfinite(gradient).all() and np.abs(gradient).max() < 100
    # The step that the slope asks for lengthens the torso.
    assert np.mean(gradient[2, [6, 7], 1]) < 0 < np.mean(gradient[2, [0, 1], 1])
    small = wanted * (0.9 * keypoints.LEAST_TORSO / np.asarray(keypoints.torso(wanted)).max())
    assert not proportion_error(wanted, small, seen)[1].any()


def test_all_joints_hidden_costs_nothing_and_has_no_gradient():
    wanted, seen = np.full((2, 12, 2), 0.3, np.float32), np.zeros((2, 12), bool)

    def total(found):
        both = keypoints.square_distance, keypoints.proportion_error
        return sum(loss(found, wanted, seen)[0].sum() for loss in both)

    slope = jax.jit(jax.value_and_grad(total))
    for found in (np.zeros_like(wanted), wanted):  # also where roots have no slope
        value, gradient = slope(found)
        assert value == 0 and not np.any(gradient)


def test_the_keypoint_net_reads_images_as_its_detector_does():
    """Pictures of any shape; Pillow's bicubic resize clips and rounds to 256 levels."""
    folder = ASSETS / "sdxl" / "face_detector"
    drawn = render(make_identities("in_train", 2), draw_pictures(0, 2, (0, 0, 1)), 96)
    images = drawn.images[:, :, 8:80]
    joints, _ = KeypointsDetector(folder).points(list(images))
    reader = open_pose_reader(f"keypoints:{folder}")
    found = nnx.jit(lambda net, x: net(x))(reader, jnp.asarray(images / 255, jnp.float32))
    assert np.abs(found * np.array([72, 96]) - joints[:, 5:]).max() < 0.3


def test_an_unknown_pose_net_is_refused():
    for name in ("openpose:x", "keypoints:", "x"):
        with pytest.raises(ValueError, match="give keypoints:DIR or movenet:FILE"):
            open_pose_reader(name)


# ---- CLIP ----------------------------------------------------------------------------------------


def test_the_cosine_is_the_cosine():
    a, b = RNG.standard_normal((2, 4, 7)).astype(np.float32)
    wanted = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    slope = jax.jit(jax.grad(lambda x: cosine(x, b).sum()))
    np.testing.assert_allclose(jax.jit(cosine)(a, b), wanted, atol=1e-6)
    assert np.isfinite(slope(np.zeros_like(a))).all()


@pytest.mark.parametrize("shape", [(60, 97), (24, 24)])
def test_clip_reads_images_as_its_preprocessing_does(shape):
    rough = RNG.integers(0, 256, (1, shape[0] // 8, shape[1] // 8, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(rough[0]).resize(shape[::-1], Image.Resampling.BICUBIC))
    ours = jax.jit(clip_pixels, static_argnums=1)(np.float32(smooth[None] / 255), 48)[0]
    wanted = clip_preprocess(smooth, 48)
    assert ours.shape == wanted.shape and np.abs(ours - wanted).mean() < 0.02


@pytest.mark.slow
def test_l_clip_is_one_minus_the_score():
    from persongen_jax.metrics.clip_score import ClipScore

    config = sdxl_defaults()
    config.loss_clip = str(ASSETS / "clip")
    loss = Similarity(config)
    network = loss.network()
    (field,) = loss.fields("img")
    images = render(make_identities("in_train", 2), draw_pictures(0, 2), 48).images
    texts = ["a photo of a smiling man", "a woman in a red hat"]
    ids = np.stack([field._encode(text) for text in texts])
    given = decoded(images.astype(np.float32) / 255, caption_ids=jnp.asarray(ids))
    values, counted = nnx.jit(lambda net: loss(net, given))(network)
    score = ClipScore(ASSETS / "clip").score(list(images), texts)
    np.testing.assert_allclose(values, 1 - score / 100, atol=1e-4)
    assert counted.all()


# ---- Faces ---------------------------------------------------------------------------------------


def test_faces_are_aligned_as_the_recognisers_were_trained():
    images = RNG.random((3, 40, 50, 3)).astype(np.float32)
    landmarks = identity.TEMPLATE[None] / 4 + RNG.normal(size=(3, 5, 2)) + [8, 5]

    @jax.jit
    def crop(images, landmarks):
        places, scaled = identity.aligned_places(landmarks, 28)
        return identity.cut(images, places), scaled

    found, scaled = crop(images, landmarks.astype(np.float32))
    assert scaled.all()
    np.testing.assert_allclose(found, align_faces(images, landmarks, 28), atol=2e-3)


def test_a_box_is_cut_as_an_enlarged_square():
    image = np.zeros((1, 20, 20, 3), np.float32)
    image[0, 4:16, 6:18] = 1  # 10 pixels of the box, and 20 % on either side, less a rim

    @jax.jit
    def cut(image, box):
        places, there = identity.box_places(box, 14)
        return identity.cut(image, places), there

    crop, there = cut(image, np.float32([[7, 5, 17, 15]]))
    # Pixels of the crop are pixels of the image: corners at 5 and 3, the rim is black.
    assert there.all() and np.abs(crop[0] - image[0, 3:17, 5:19]).max() < 1e-5


def test_no_face_is_not_counted_and_finite():
    places, there = jax.jit(identity.box_places, static_argnums=1)(np.zeros((2, 4)), 8)
    aligned, scaled = jax.jit(identity.aligned_places, static_argnums=1)(np.zeros((2, 5, 2)), 8)
    assert not there.any() and not scaled.any()
    assert np.isfinite(places).all() and np.isfinite(aligned).all()


@pytest.mark.slow
def test_the_identity_of_a_face_with_itself_is_no_loss():
    config = sdxl_defaults()
    config.loss_face_net = str(ASSETS / "face_net" / "model.safetensors")
    loss = identity.Identity(config)
    drawn = render(make_identities("in_train", 3), draw_pictures(0, 3, (1, 0, 0)), 64)
    images = drawn.images.astype(np.float32) / 255
    mask = np.ones((3, 5), bool)
    mask[1] = False  # by its box
    boxes = drawn.face_box.copy()
    mask[2], boxes[2] = False, 0  # not at all
    batch = {"landmarks": drawn.landmarks, "landmarks_mask": mask, "face_box": boxes}
    run = nnx.jit(lambda net, images, target, batch: loss(
        net, Decoded(images, (64, 64), lambda: target, batch)))  # fmt: skip
    same, counted = run(loss.network(), images, images, batch)
    assert np.abs(same[:2]).max() < 1e-5 and counted.tolist() == [True, True, False]
    other, _ = run(loss.network(), images[[1, 0, 2]], images, batch)
    assert other[:2].min() > 0.1
