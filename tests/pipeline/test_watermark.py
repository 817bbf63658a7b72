"""The watermark, against facts recorded from the invisible-watermark package."""

import io

import numpy as np
import pytest
from diffusers.pipelines.stable_diffusion_xl import watermark as diffusers_watermark
from PIL import Image
from skimage import data

from persongen_jax.pipeline.watermark import (
    WATERMARK_BITS,
    add_watermark,
    has_watermark,
    read_watermark,
)

# Made with invisible-watermark 0.2.0, PyWavelets and opencv-python-headless from the image of
# `synthetic_image`: WatermarkEncoder().encode(bgr, "dwtDct") with diffusers' 48 bits, and
# WatermarkDecoder("bits", 48).decode of the result. On this image the package itself recovers only
# 38 of the bits.
PACKAGE_READS = "101101111111111111110000111110111011010111111110"
PACKAGE_CHANNEL_SUMS = [9025286, 9035222, 9064512]
PACKAGE_PIXELS = {  # (row, column): RGB
    (4, 16): [189, 84, 186],  # was [189, 88, 163]
    (36, 220): [197, 64, 72],  # was [197, 59, 97]
    (73, 68): [54, 85, 79],
    (112, 100): [212, 106, 146],
    (149, 52): [156, 187, 181],
    (181, 156): [69, 132, 219],
    (217, 124): [110, 97, 64],
    (253, 225): [147, 46, 147],
    # Beyond the last whole block:
    (5, 268): [149, 111, 73],
    (130, 266): [190, 84, 157],
    (258, 100): [43, 130, 41],
    (260, 269): [181, 207, 56],
}


def synthetic_image():
    """uint8 [261, 270, 3], whole-number arithmetic only; neither side is a multiple of 2 * 4."""
    i, j, c = np.ogrid[:261, :270, :3]
    i, j = i // 4, j // 4
    return ((37 * i + 59 * j + 71 * c + (13 + c) * i * j) % 176 + 40).astype(np.uint8)


def test_bits_are_those_of_diffusers():
    assert WATERMARK_BITS.tolist() == diffusers_watermark.WATERMARK_BITS


def test_pixels_are_those_of_the_package():
    marked = add_watermark(synthetic_image()[None])[0]
    for (row, column), expected in PACKAGE_PIXELS.items():
        np.testing.assert_allclose(marked[row, column].astype(int), expected, atol=1)
    # Rounding every hundredth value differently would still pass.
    sums = marked.sum(axis=(0, 1), dtype=np.int64)
    np.testing.assert_allclose(sums, PACKAGE_CHANNEL_SUMS, atol=marked[..., 0].size // 100)


def test_reads_what_the_package_reads():
    bits = read_watermark(add_watermark(synthetic_image()[None])[0])
    assert "".join(map(str, bits)) == PACKAGE_READS


@pytest.mark.parametrize("size", [(512, 512), (1024, 1024), (509, 387)])
def test_photograph_keeps_all_bits(size):
    photo = np.asarray(Image.fromarray(data.astronaut()).resize(size, Image.Resampling.LANCZOS))
    before = photo.copy()
    marked = add_watermark(np.stack([photo, photo[:, ::-1]]))
    np.testing.assert_array_equal(photo, before)
    assert marked.shape == (2, *photo.shape) and marked.dtype == np.uint8
    assert not has_watermark(photo)
    assert read_watermark(marked[0]).tolist() == WATERMARK_BITS.tolist()
    assert has_watermark(marked[0]) and has_watermark(marked[1])

    file = io.BytesIO()
    Image.fromarray(marked[0]).save(file, "png")
    assert has_watermark(np.asarray(Image.open(file)))


def test_change_is_small():
    photo = data.astronaut()
    change = np.abs(add_watermark(photo[None])[0].astype(int) - photo)
    # Large at single pixels of colour edges (see the swapped details), hardly any change elsewhere.
    assert change.mean() < 1.5
    assert np.percentile(change, 99) <= 20


@pytest.mark.parametrize("size", [(400, 255), (255, 256), (64, 64)])
def test_small_images_are_left_alone(size):
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    marked = add_watermark(image)
    np.testing.assert_array_equal(marked, image)
    assert not np.shares_memory(marked, image)
    assert not has_watermark(image[0])


def test_unmarked_images_are_not_recognised():
    random = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for image in [random, np.zeros_like(random), np.full_like(random, 255), data.coffee()]:
        assert not has_watermark(image)


def test_no_images():
    assert add_watermark(np.zeros((0, 256, 256, 3), np.uint8)).shape == (0, 256, 256, 3)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"images must be uint8 .*float32 \[1, 256, 256, 3\]"):
        add_watermark(np.zeros((1, 256, 256, 3), np.float32))
    with pytest.raises(ValueError, match=r"image must be uint8 .*\[256, 256\]"):
        has_watermark(np.zeros((256, 256), np.uint8))
    with pytest.raises(ValueError, match="too few"):
        read_watermark(np.zeros((64, 64, 3), np.uint8))
