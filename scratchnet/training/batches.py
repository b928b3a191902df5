"""From pictures in memory to batches for the network: split, shuffle, augment, normalise, resize.

All randomness is a pure function of (seed, epoch, batch): the permutation of epoch k comes from a generator seeded with
(seed, k), the augmentation of its batch b from one seeded with (seed, k, 1 + b). There is no generator whose state
moves along, so a checkpoint records a position, (epoch, batch), and a run that goes on from there, even in the middle
of an epoch, sees the same bits as a run that was never stopped. (The 1 is needed: NumPy pads a seed with zeros, so that
(seed, k) and (seed, k, 0) are one and the same generator.)

Batches leave here in channel-major order, as the layers want them: C-contiguous when seen as (C, H, W, N).
"""

import operator
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from scratchnet.array import as_images, as_maps
from scratchnet.training.cifar10 import MEAN, STD, Dataset


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out round(fraction · N) pictures, drawn by the seed.

    Returns:
        (train, validation): both in the order of `dataset`, without a picture in common.

    Raises:
        ValueError: fraction is not in 0 … 1, 1 excluded.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"split: the fraction to hold out must be at least 0 and less than 1, got {fraction}")
    count = len(dataset.labels)
    # A stream that no epoch uses: `Batches` seeds with (seed, epoch) and (seed, epoch, 1 + batch).
    order = np.random.default_rng((seed, 0, 0, 1)).permutation(count)
    held_out = np.zeros(count, bool)
    held_out[order[: round(fraction * count)]] = True

    def part(chosen):
        return dataset._replace(images=dataset.images[chosen], labels=dataset.labels[chosen])

    return part(~held_out), part(held_out)


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
    n, c, h, w = images.shape
    if not 0 <= padding < min(h, w):
        raise ValueError(f"random_crop_flip: padding must be 0 to {min(h, w) - 1} for {h}×{w} pictures, got {padding}")
    mirrored = rng.random(n) < 0.5 if flip is None else flip
    down, right = rng.integers(-padding, padding + 1, (2, n))
    rows = _reflect(np.arange(h)[:, None] + down, h)  # (H, N): which row the output row comes from
    cols = _reflect(np.arange(w)[:, None] + right, w)  # (W, N)
    cols = np.where(mirrored, w - 1 - cols, cols)
    source = rows[:, None] * w + cols + np.arange(n) * (c * h * w)  # (H, W, N): offsets of channel 0's pixels
    planes = np.arange(c)[:, None, None, None] * (h * w)
    return as_images(np.take(images.reshape(-1), planes + source))  # (C, H, W, N) -> (N, C, H, W)


def _reflect(index, size):
    """Fold indices that lie up to size - 1 outside 0 … size - 1 back in: -1 -> 1, size -> size - 2."""
    return (size - 1) - np.abs((size - 1) - np.abs(index))


def normalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(x / 255 - mean) / std per channel.

    Args:
        images: (N, C, H, W) uint8, in any memory order.
        mean, std: C numbers each, of a range of 1.

    Returns:
        (N, C, H, W) float32, channel-major; in two passes over it and without another array.
    """
    scale = 1 / (255 * np.asarray(std))
    shift = np.asarray(mean) / std
    maps = images.transpose(1, 2, 3, 0)  # (N, C, H, W) -> (C, H, W, N)
    out = np.empty(maps.shape, np.float32)
    np.multiply(maps, scale.astype(np.float32)[:, None, None, None], out=out)
    out -= shift.astype(np.float32)[:, None, None, None]
    return as_images(out)


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
    r_h, r_w = (resize_matrix(old, size).astype(images.dtype) for old in (h, w))
    tall = r_h @ as_maps(images).reshape(c, h, w * n)  # (C, H, W·N) -> (C, S, W·N)
    return as_images(r_w @ tall.reshape(c, size, w, n))  # (C, S, W, N) -> (C, S, S, N)


class Batches:
    """The batches of a data set, epoch by epoch; the next one is prepared while the network works on this one.

    Args:
        dataset: one picture or more.
        batch_size: pictures a batch; the last one of an epoch is shorter where the division leaves a remainder.
        seed: a non-negative integer that fixes order and augmentation of every epoch (see the head of this file).
        augment: whether to apply `random_crop_flip`.
        padding: of `random_crop_flip`, in pixels.
        alternate: mirror each picture in every other epoch, half of them beginning with the first, instead of by chance:
            two epochs show both sides of every picture (Jordan 2024, section 3.6).
        shuffle: whether every epoch has its own order; otherwise that of the data set.
        mean, std: per channel, for `normalise`.
        image_size: side in pixels to `resize` to; None keeps the pictures as they are.
        drop_last: leave a shorter last batch out, as in training: batch norm knows little from few pictures, and
            nothing from one. With `shuffle` it leaves out other pictures every epoch.

    Raises:
        ValueError: no pictures, another number of labels than of pictures, a size below 1, or a batch that cannot be
            filled although short ones are to be left out.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int,
        augment: bool = False,
        padding: int = 4,
        alternate: bool = False,
        shuffle: bool = True,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        image_size: int | None = None,
        drop_last: bool = False,
    ):
        count = len(dataset.images)
        if count != len(dataset.labels):
            raise ValueError(f"Batches: as many labels as pictures, got {len(dataset.labels)} and {count}")
        if count == 0:
            raise ValueError(f"Batches: the data set {dataset.name!r} is empty; it needs at least one picture")
        if operator.index(batch_size) < 1:
            raise ValueError(f"Batches: batch_size must be at least 1, got {batch_size}")
        if drop_last and batch_size > count:
            raise ValueError(f"Batches: batch_size must be at most {count}, the number of pictures, got {batch_size}")
        if image_size is not None and operator.index(image_size) < 1:
            raise ValueError(f"Batches: image_size must be at least 1, got {image_size}")
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.augment, self.shuffle, self.drop_last = augment, shuffle, drop_last
        self.mean, self.std, self.image_size = mean, std, image_size
        self.padding, self.alternate = padding, alternate
        if alternate:  # drawn from another free stream, see `split`
            self._mirrored_first = np.random.default_rng((seed, 0, 0, 2)).random(count) < 0.5

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(len(self.dataset.images), self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def epoch(self, k: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches start, start + 1, … of epoch k.

        Yields:
            x, (N, 3, S, S) float32, channel-major, and labels, (N,) int64.

        Raises:
            ValueError: k is negative, or start is not in 0 … len(self).
        """
        if k < 0 or not 0 <= start <= len(self):
            raise ValueError(f"Batches: epoch must be at least 0 and start 0 to {len(self)}, got {k} and {start}")
        return self._prepared(k, start)

    def _prepared(self, k, start):
        order = np.arange(len(self.dataset.images))
        if self.shuffle:
            order = np.random.default_rng((self.seed, k)).permutation(order)
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as worker:
            ahead = None
            for b in range(start, len(self)):
                batch = ahead.result() if ahead else self._batch(order, k, b)
                # Asked for just before the caller gets this one, so there is never more than one batch waiting.
                ahead = worker.submit(self._batch, order, k, b + 1) if b + 1 < len(self) else None
                yield batch

    def _batch(self, order, k, b):
        chosen = order[b * self.batch_size : (b + 1) * self.batch_size]
        images = self.dataset.images[chosen]
        if self.augment:
            flip = self._mirrored_first[chosen] ^ (k % 2 == 1) if self.alternate else None
            images = random_crop_flip(images, np.random.default_rng((self.seed, k, 1 + b)), self.padding, flip)
        x = normalise(images, self.mean, self.std)
        if self.image_size is not None and x.shape[2:] != (self.image_size, self.image_size):
            x = resize(x, self.image_size)
        return x, self.dataset.labels[chosen]
