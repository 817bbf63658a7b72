"""The invisible watermark of SDXL images: 48 fixed bits, hidden in the colour of 8x8 blocks.

Compatible with method "dwtDct" of the ``invisible-watermark`` package, which diffusers' SDXL
pipelines use; written here in numpy because that package needs torch and OpenCV. Despite the name
there is no DCT in it: the largest Haar average of each block of the U channel is moved to a quarter
or to three quarters of a quantisation step, and that is the bit.

Whatever looks odd below (details swapped, values truncated) is what that package does with 8-bit
images, and the output pixels equal its own. Two things follow from its design: on some images (flat
or warm-coloured ones) its decoder recovers only part of the bits, so an image is recognised by most
of them; and diffusers embeds before rounding to 8 bits, where U is centred at 0.5 instead of 128,
so the bits of its own warm-coloured images often cannot be read at all.
"""

import numpy as np

# The message of Stability AI's and diffusers' SDXL pipelines, first bit first.
WATERMARK_BITS = np.array(
    [int(bit) for bit in f"{0b101100111110110010010000011110111011000110011110:048b}"],
    dtype=np.uint8,
)
STEP = 36  # of the quantisation of a Haar average, which is twice a mean of four U values
BLOCK = 4  # Haar averages per block side: 8 pixels
MIN_WIDTH = 256  # diffusers skips narrower images
MIN_PIXELS = 256 * 256  # invisible-watermark refuses smaller images
# This many of the 48 bits must agree. From here on Stability AI's detector (generative-models,
# scripts/demo/detect.py) says "likely watermarked", wrongly for 0.02% of their real images.
MIN_AGREEING_BITS = 34

_HALF = np.sqrt(0.5)  # the one coefficient of the orthonormal Haar filters


def add_watermark(images: np.ndarray) -> np.ndarray:
    """Embed the watermark.

    Args:
        images: uint8 RGB [n, h, w, 3]. Images narrower than 256 pixels or with less than 256 * 256
            pixels are returned unchanged. Rows and columns beyond a multiple of 8 carry no bits.

    Returns:
        uint8 RGB [n, h, w, 3], a new array.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"images must be uint8 [n, h, w, 3], not {images.dtype} {list(images.shape)}"
        )
    if not has_room(*images.shape[1:3]):
        return images.copy()
    # One at a time: the intermediate values are eight times as large as the images.
    return np.stack([_embed(image) for image in images]) if len(images) else images.copy()


def read_watermark(image: np.ndarray) -> np.ndarray:
    """The bits in ``image`` (uint8 RGB [h, w, 3]) as uint8 [48]; arbitrary ones if unmarked."""
    _check_image(image)
    if image.shape[0] * image.shape[1] < MIN_PIXELS:
        raise ValueError(f"image has {list(image.shape[:2])} pixels, too few to hold a watermark")
    averages, _ = _haar(_whole_part(_rgb_to_yuv(image)[..., 1]))
    blocks = _blocks(averages)
    values = np.abs(np.take_along_axis(blocks, _largest(blocks), axis=1)[:, 0])
    votes = values % STEP > STEP / 2
    index = np.arange(len(votes)) % len(WATERMARK_BITS)
    share = np.bincount(index, weights=votes) / np.bincount(index)
    return (share * 255 > 127).astype(np.uint8)


def has_watermark(image: np.ndarray) -> bool:
    """Whether ``image`` (uint8 RGB [h, w, 3]) very probably carries the watermark.

    Images too small to be marked never do; flat or warm-coloured ones may be missed although
    marked.
    """
    _check_image(image)
    if not has_room(*image.shape[:2]):
        return False
    return int(np.sum(read_watermark(image) == WATERMARK_BITS)) >= MIN_AGREEING_BITS


def has_room(height: int, width: int) -> bool:
    """Whether an image of this size can hold the watermark."""
    return width >= MIN_WIDTH and height * width >= MIN_PIXELS


def _check_image(image):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 [h, w, 3], not {image.dtype} {list(image.shape)}")


def _embed(image):
    """uint8 RGB [h, w, 3] to the same with the watermark."""
    yuv = _rgb_to_yuv(image)
    u = _whole_part(yuv[..., 1])
    averages, (horizontal, vertical, diagonal) = _haar(u)

    blocks = _blocks(averages)
    bits = np.resize(WATERMARK_BITS, len(blocks))  # repeated, in row order
    where = _largest(blocks)
    # U is never negative here, so neither are the averages.
    levels = np.take_along_axis(blocks, where, axis=1)[:, 0] // STEP
    np.put_along_axis(blocks, where, ((levels + 0.25 + 0.5 * bits) * STEP)[:, None], axis=1)
    _put_blocks(averages, blocks)

    # The package swaps the horizontal and vertical details, which transposes U in every 2x2 square.
    # Reading does not depend on it; it is kept so that the pixels equal the package's.
    u[:] = _inverse_haar(averages, (vertical, horizontal, diagonal))
    return _yuv_to_rgb(yuv)


def _whole_part(channel):
    """The view of ``channel`` [h, w] whose sides are multiples of 4, where the package works."""
    height, width = channel.shape
    return channel[: height // 4 * 4, : width // 4 * 4]


def _blocks(averages):
    """Maps [h, w] to a copy [blocks in row order, 16]; drops an incomplete block at the end."""
    rows, columns = averages.shape[0] // BLOCK, averages.shape[1] // BLOCK
    whole = averages[: rows * BLOCK, : columns * BLOCK]
    grid = whole.reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2)
    return grid.reshape(rows * columns, BLOCK * BLOCK)


def _put_blocks(averages, blocks):
    """Undo :func:`_blocks`, into ``averages``."""
    rows, columns = averages.shape[0] // BLOCK, averages.shape[1] // BLOCK
    grid = blocks.reshape(rows, columns, BLOCK, BLOCK).swapaxes(1, 2)
    averages[: rows * BLOCK, : columns * BLOCK] = grid.reshape(rows * BLOCK, columns * BLOCK)


def _largest(blocks):
    """Maps [n, 16] to [n, 1]: the index of each block's largest value, never the first one."""
    return np.argmax(np.abs(blocks[:, 1:]), axis=1)[:, None] + 1


def _haar(x):
    """One level of the Haar transform: averages, (horizontal, vertical, diagonal), [h/2, w/2].

    Each product is rounded as in PyWavelets: results are truncated to whole numbers later, and
    there the last bit of a float decides between two neighbours.
    """
    x = x * _HALF
    low, high = x[1::2] + x[::2], x[::2] - x[1::2]
    low, high = low * _HALF, high * _HALF
    return low[:, 1::2] + low[:, ::2], (
        high[:, 1::2] + high[:, ::2],
        low[:, ::2] - low[:, 1::2],
        high[:, ::2] - high[:, 1::2],
    )


def _inverse_haar(averages, details):
    """Undo :func:`_haar`, truncated to whole numbers.

    They stay within 0..255: U is within 16..239, and a bit moves it by 13.5 at most.
    """
    averages, horizontal, vertical, diagonal = (c * _HALF for c in (averages, *details))
    low = np.stack([averages + vertical, averages - vertical], axis=2)
    high = np.stack([horizontal + diagonal, horizontal - diagonal], axis=2)
    rows, columns = averages.shape
    low, high = (c.reshape(rows, columns * 2) * _HALF for c in (low, high))
    x = np.stack([low + high, low - high], axis=1).reshape(rows * 2, columns * 2)
    return x.astype(np.int32)


# The same fixed-point arithmetic as OpenCV's 8-bit BGR2YUV and YUV2BGR: 14 fractional bits.


def _descale(x):
    return (x + (1 << 13)) >> 14


def _rgb_to_yuv(image):
    """uint8 RGB [h, w, 3] to int32 YUV [h, w, 3], all in 0..255."""
    red, green, blue = np.moveaxis(image.astype(np.int32), -1, 0)
    y = _descale(4899 * red + 9617 * green + 1868 * blue)
    u = _descale(8061 * (blue - y)) + 128
    v = _descale(14369 * (red - y)) + 128
    return np.clip(np.stack([y, u, v], axis=-1), 0, 255)


def _yuv_to_rgb(yuv):
    """int32 YUV [h, w, 3] to uint8 RGB [h, w, 3]."""
    y, u, v = np.moveaxis(yuv, -1, 0)
    u, v = u - 128, v - 128
    red = y + _descale(18678 * v)
    green = y + _descale(-6472 * u - 9519 * v)
    blue = y + _descale(33292 * u)
    return np.clip(np.stack([red, green, blue], axis=-1), 0, 255).astype(np.uint8)
