"""From pictures in memory to batches for the network: split, shuffle, augment, normalise, resize.

All randomness is a pure function of (seed, epoch, batch): the permutation of epoch k comes from a generator seeded with
(seed, k), the augmentation of its batch b from one seeded with (seed, k, 1 + b). There is no generator whose state
moves along, so a checkpoint records a position, (epoch, batch), and a run that goes on from there, even in the middle
of an epoch, sees the same bits as a run that was never stopped. (The 1 is needed: NumPy pads a seed with zeros, so that
(seed, k) and (seed, k, 0) are one and the same generator.) Of several ranks (parallel/ranks.py) each draws for the whole
batch, and makes its own share of it.

Batches leave here in channel-major order, as the layers want them: C-contiguous when seen as (C, H, W, N).
"""

import operator
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from scratchnet import kernels
from scratchnet.array import as_images, to_device
from scratchnet.data.cifar10 import MEAN, STD
from scratchnet.data.dataset import Dataset
from scratchnet.device import kind_of
from scratchnet.parallel import ranks
from scratchnet.training.augment import (
    affine,
    crop_flip,
    draw_crop_flip,
    normalise,
    resize,
    stored_in_bfloat16,
    take_batch,
)


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out round(fraction · N) pictures, drawn by the seed.

    Returns:
        (train, validation): both in the order of `dataset`, without a picture in common.

    Raises:
        ValueError: fraction is not in 0 … 1, 1 excluded, or pictures and labels are not as `Batches` takes them.
    """
    dataset = _checked(dataset, "split")
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


def _checked(dataset: Dataset, who: str) -> Dataset:
    """The data set with pictures and labels as NumPy arrays; ValueError, opened by `who`, where they are none of ours."""
    images, labels = np.asarray(dataset.images), np.asarray(dataset.labels)
    if images.ndim != 4:
        raise ValueError(f"{who}: pictures must be (N, C, H, W), got {images.shape}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" and labels.size:
        raise ValueError(f"{who}: labels must be (N,) integers, got {labels.shape} {labels.dtype}")
    if len(images) != len(labels):
        raise ValueError(f"{who}: as many labels as pictures, got {len(labels)} and {len(images)}")
    if images.dtype.kind == "f":
        low, high = images.min(initial=0), images.max(initial=1)
        if not (low == 0 and high == 1):  # also where one is NaN
            raise ValueError(f"{who}: pictures of floats must be numbers from 0 to 1, got {low:g} to {high:g}")
    elif images.dtype != np.uint8:
        raise ValueError(f"{who}: pictures must be uint8, or floats from 0 to 1, got {images.dtype}")
    return dataset._replace(images=images, labels=labels.astype(np.int64, copy=False))


class Batches:
    """The batches of a data set, epoch by epoch; the next one is prepared while the network works on this one.

    Args:
        dataset: one picture or more, (N, C, H, W): bytes (uint8), or floats from 0 to 1, as torchvision's `ToTensor`
            makes them. Labels: N integers, in an array or a list.
        batch_size: pictures a batch; the last one of an epoch is shorter where the division leaves a remainder.
        seed: a non-negative integer that fixes order and augmentation of every epoch (see the head of this file).
        augment: whether to apply `random_crop_flip`.
        padding: of `random_crop_flip`, in pixels.
        alternate: mirror each picture in every other epoch, half of them beginning with the first, instead of by chance:
            two epochs show both sides of every picture (Jordan 2024, section 3.6).
        shuffle: whether every epoch has its own order; otherwise that of the data set.
        mean, std: C numbers each, of a range of 1, for `normalise`; CIFAR-10's by default.
        image_size: side in pixels to `resize` to; None keeps the pictures as they are.
        device: "cuda" keeps all pictures there, as uint8 or float32, and makes the batches there from the same random
            numbers; what is copied for a batch is those numbers and the labels.
        bfloat16: on a GPU, store the batches in 16 bits, for a network that computes on such (kernels/gpu_bfloat16.py).
        drop_last: leave a shorter last batch out, as in training: batch norm knows little from few pictures, and
            nothing from one. With `shuffle` it leaves out other pictures every epoch.

    Raises:
        ValueError: no pictures, pictures or labels of another kind or number, other channels than mean and std have,
            a size below 1, or a batch that cannot be filled although short ones are to be left out.
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
        device: str = "cpu",
        bfloat16: bool = False,
    ):
        dataset = _checked(dataset, "Batches")
        count, channels = len(dataset.images), dataset.images.shape[1]
        if not len(mean) == len(std) == channels:
            sizes = f"pictures with {channels} channels need {channels} numbers each"
            raise ValueError(f"Batches: {sizes} in mean and std, got {len(mean)} and {len(std)}")
        if not min(std) > 0:
            raise ValueError(f"Batches: std must be above 0 in every channel, got {tuple(std)}")
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
        self.padding, self.alternate, self.device, self.bfloat16 = padding, alternate, device, bfloat16
        if device != "cpu":
            kind = np.uint8 if dataset.images.dtype == np.uint8 else np.float32
            on_device = np.ascontiguousarray(dataset.images, kind), *affine(mean, std, kind)
            self._images, *self._affine = (to_device(array, device) for array in on_device)
        if alternate:  # drawn from another free stream, see `split`
            self._mirrored_first = np.random.default_rng((seed, 0, 0, 2)).random(count) < 0.5

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(len(self.dataset.images), self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def epoch(self, k: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches start, start + 1, … of epoch k; of each this rank's share, `ranks.share`.

        Yields:
            x, (N, C, S, S) float32 or bfloat16, channel-major, and labels, (N,) int64; N may be 0 for one rank of several.

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
        whole = [order[b * self.batch_size : (b + 1) * self.batch_size] for b in range(len(self))]
        # Here and now: while a batch is prepared, the network may compute as the only rank (`ranks.alone`).
        batches = [(chosen, ranks.share(len(chosen))) for chosen in whole]
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as worker:
            ahead = None
            for b in range(start, len(self)):
                batch = ahead.result() if ahead else self._batch(batches, k, b)
                # Asked for just before the caller gets this one, so there is never more than one batch waiting.
                ahead = worker.submit(self._batch, batches, k, b + 1) if b + 1 < len(self) else None
                yield batch

    def _batch(self, batches, k, b):
        chosen, here = batches[b]
        labels = to_device(self.dataset.labels[chosen[here]], self.device)
        if not len(labels):
            return self._nothing(), labels
        draws = self._draws(chosen, np.random.default_rng((self.seed, k, 1 + b)), k)
        draws = np.ascontiguousarray(draws[:, here])
        x = (self._on_cpu if self.device == "cpu" else self._on_device)(draws)
        if self.image_size is not None and x.shape[2:] != (self.image_size, self.image_size):
            x = resize(x, self.image_size)
        if self.bfloat16 and self.device != "cpu":
            x = kernels.run(stored_in_bfloat16, x)
        return x, labels

    def _nothing(self):
        """A batch without a picture."""
        _, c, *sides = self.dataset.images.shape
        h, w = sides if self.image_size is None else (self.image_size, self.image_size)
        x = to_device(as_images(np.empty((c, h, w, 0), np.float32)), self.device)
        return stored_in_bfloat16(x) if self.bfloat16 and self.device != "cpu" else x

    def _on_cpu(self, draws):
        stored = self.dataset.images
        taking = kernels.choose(kernels.Pair(take_batch), kind_of(stored))
        if taking.version != "plain" and stored.dtype.isnative:
            return taking.forward(stored, draws, *affine(self.mean, self.std, stored.dtype))
        images = stored[draws[0]]
        if self.augment:
            images = crop_flip(images, draws[1] > 0, draws[2:])
        return normalise(images, self.mean, self.std)

    def _on_device(self, draws):
        return kernels.run(take_batch, self._images, to_device(draws, self.device), *self._affine)

    def _draws(self, chosen, rng, k):
        """What `take_batch` needs to know of each picture: (4, N) int32."""
        draws = np.zeros((4, len(chosen)), np.int32)
        draws[0] = chosen
        if self.augment:
            flip = self._mirrored_first[chosen] ^ (k % 2 == 1) if self.alternate else None
            shape = len(chosen), *self.dataset.images.shape[1:]
            draws[1], draws[2:] = draw_crop_flip(shape, rng, self.padding, flip)
        return draws
