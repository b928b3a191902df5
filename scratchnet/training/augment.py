"""What is done to pictures on their way to the network: mirror, shift, normalise, resize; on the CPU or on a GPU.

Whatever is drawn is drawn by NumPy on the CPU, in the same order for both, so that a GPU sees the same pictures.
"""

from collections.abc import Sequence

import numpy as np

from scratchnet.array import as_images, as_maps, to_device
from scratchnet.device import bfloat16_dtype, device_of, get_array_module


def random_crop_flip(
    images: np.ndarray, rng: np.random.Generator, padding: int = 4, flip: np.ndarray | None = None
) -> np.ndarray:
    """Mirror half of the pictures, then shift each by up to `padding` pixels, what comes in being a reflection.

    This is a random crop from the picture padded by reflection (the edge pixel is not repeated). No padded copy is
    made: each output pixel looks up which pixel it comes from, and one gather fetches all of them.

    Args:
        images: (N, C, H, W) uint8 (any dtype works).
        rng: draws, per picture, whether to flip and the two shifts.
        padding: pixels, 0 to min(H, W) - 1.
        flip: (N,) bool, which ones to mirror; drawn where none are given.

    Returns:
        (N, C, H, W) of the same dtype, channel-major.

    Raises:
        ValueError: padding is negative, or so large that there is nothing left to reflect.
    """
    return crop_flip(images, *draw_crop_flip(images.shape, rng, padding, flip))


def crop_flip(images, mirrored, shifts):
    """`random_crop_flip` with what `draw_crop_flip` gave."""
    n, c, h, w = images.shape
    down, right = shifts
    rows = _reflect(np.arange(h)[:, None] + down, h)  # (H, N): which row the output row comes from
    cols = _reflect(np.arange(w)[:, None] + right, w)  # (W, N)
    cols = np.where(mirrored, w - 1 - cols, cols)
    source = rows[:, None] * w + cols + np.arange(n) * (c * h * w)  # (H, W, N): offsets of channel 0's pixels
    planes = np.arange(c)[:, None, None, None] * (h * w)
    return as_images(np.take(images.reshape(-1), planes + source))  # (C, H, W, N) -> (N, C, H, W)


def draw_crop_flip(shape, rng, padding, flip):
    """Which of (N, C, H, W) pictures to mirror, (N,) bool, and how many pixels to shift them down and right, (2, N)."""
    n, _, h, w = shape
    if not 0 <= padding < min(h, w):
        raise ValueError(f"random_crop_flip: padding must be 0 to {min(h, w) - 1} for {h}×{w} pictures, got {padding}")
    return rng.random(n) < 0.5 if flip is None else flip, rng.integers(-padding, padding + 1, (2, n))


def _reflect(index, size):
    """Fold indices that lie up to size - 1 outside 0 … size - 1 back in: -1 -> 1, size -> size - 2."""
    return (size - 1) - abs((size - 1) - abs(index))


def take_batch(images, draws, scale, shift):
    """A batch from the whole data set, mirrored, shifted and normalised: what a GPU does with pictures that it holds.

    The same as `random_crop_flip` and `normalise`, to rounding, for numbers that are drawn already.

    Args:
        images: all pictures, (total, C, H, W) uint8 or float32.
        draws: (4, N) int32: which picture, whether to mirror it, pixels down and pixels to the right.
        scale, shift: (C,) float32; a pixel x becomes x · scale - shift.

    Returns:
        (N, C, H, W) float32, channel-major.
    """
    xp = get_array_module(images)
    (_, _, h, w), (chosen, mirrored, down, right) = images.shape, draws
    rows = _reflect(xp.arange(h)[:, None] + down, h)  # (H, N)
    cols = _reflect(xp.arange(w)[:, None] + right, w)  # (W, N)
    cols = xp.where(mirrored > 0, w - 1 - cols, cols)
    maps = images.transpose(1, 2, 3, 0)[:, rows[:, None], cols[None], chosen]  # (C, H, W, N)
    return as_images(maps * scale[:, None, None, None] - shift[:, None, None, None])


def normalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(x / 255 - mean) / std per channel, or (x - mean) / std for floats, whose range is 0 to 1 already.

    Args:
        images: (N, C, H, W) uint8 or floating-point, in any memory order.
        mean, std: C numbers each, of a range of 1.

    Returns:
        (N, C, H, W) float32, channel-major; in two passes over it and without another array.
    """
    scale, shift = affine(mean, std, images.dtype)
    maps = images.transpose(1, 2, 3, 0)  # (N, C, H, W) -> (C, H, W, N)
    out = np.empty(maps.shape, np.float32)
    np.multiply(maps, scale[:, None, None, None], out=out, casting="same_kind")
    out -= shift[:, None, None, None]
    return as_images(out)


def stored_in_bfloat16(images):
    """Pictures (N, C, H, W) float32, rounded to bfloat16, channel-major."""
    return as_images(as_maps(images).astype(bfloat16_dtype()))


def affine(mean, std, dtype):
    """Scale and shift, (C,) float32 each: `normalise` of a pixel x of that dtype is x · scale - shift."""
    top = 255 if dtype == np.uint8 else 1
    return (1 / (top * np.asarray(std))).astype(np.float32), (np.asarray(mean) / std).astype(np.float32)


def resize_matrix(size_in: int, size_out: int) -> np.ndarray:
    """The (size_out, size_in) float64 matrix R whose product with a line of pixels is that line, resized.

    Pixel i of the output has its centre at (i + ½) · size_in / size_out - ½ on the input's axis and mixes the two input
    pixels around it by their nearness, so a row of R has at most two entries, and they sum to 1. Beyond the outermost
    centres the edge pixel is repeated. (PyTorch: mode="bilinear", align_corners=False, antialias=False.)
    """
    centre = np.maximum((np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5, 0)
    left = centre.astype(np.intp)  # rounds down; at most size_in - 1
    right = np.minimum(left + 1, size_in - 1)
    nearness = centre - left
    matrix = np.zeros((size_out, size_in))
    i = np.arange(size_out)
    matrix[i, left] = 1 - nearness
    matrix[i, right] += nearness
    return matrix


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Bilinear interpolation of (N, C, H, W) floats to (N, C, size, size), channel-major, of the same dtype.

    Why two matrix products: a bilinear weight is the product of a weight that depends on the row alone and one that
    depends on the column alone, so a plane X becomes R_h · X · R_wᵀ. Each product treats one axis and takes every
    picture along; nothing is gathered, and the matrix library does all the work.
    """
    n, c, h, w = images.shape
    matrices = (resize_matrix(old, size).astype(images.dtype) for old in (h, w))
    r_h, r_w = (to_device(matrix, device_of(images)) for matrix in matrices)
    tall = r_h @ as_maps(images).reshape(c, h, w * n)  # (C, H, W·N) -> (C, S, W·N)
    return as_images(r_w @ tall.reshape(c, size, w, n))  # (C, S, W, N) -> (C, S, S, N)
