"""From arrays in memory to batches for the network: split, shuffle, and of pictures augment, normalise, resize.

All randomness is a pure function of (seed, epoch, batch): the permutation of epoch k comes from a generator seeded with
(seed, k), the augmentation of its batch b from one seeded with (seed, k, 1 + b). There is no generator whose state
moves along, so a checkpoint records a position, (epoch, batch), and a run that goes on from there, even in the middle
of an epoch, sees the same bits as a run that was never stopped. (The 1 is needed: NumPy pads a seed with zeros, so that
(seed, k) and (seed, k, 0) are one and the same generator.) Of several ranks (parallel/ranks.py) each draws for the whole
batch, and makes its own share of it.

Batches leave here in channel-major order, as the layers want them: C-contiguous when seen as (C, H, W, N), or (F, N).
"""

import operator
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from scratchnet import kernels
from scratchnet.array import as_images, as_maps, to_device
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
from scratchnet.training.inputs import checked, require_pictures


def split(dataset: Any, fraction: float, seed: int) -> tuple[Any, Any]:
    """Hold out round(fraction · N) pictures, drawn by the seed.

    Args:
        dataset: a `Dataset`, or a pair of arrays, as `Batches` takes them.
        fraction: at least 0, less than 1.
        seed: a non-negative integer.

    Returns:
        (train, validation): both in the order of `dataset` and of its kind, without a picture in common.

    Raises:
        ValueError: fraction is not in 0 … 1, 1 excluded, or pictures and labels are not as `Batches` takes them.
    """
    whole = checked(dataset, "split")
    if not 0 <= fraction < 1:
        raise ValueError(f"split: the fraction to hold out must be at least 0 and less than 1, got {fraction}")
    count = len(whole.labels)
    # A stream that no epoch uses: `Batches` seeds with (seed, epoch) and (seed, epoch, 1 + batch).
    order = np.random.default_rng((seed, 0, 0, 1)).permutation(count)
    held_out = np.zeros(count, bool)
    held_out[order[: round(fraction * count)]] = True

    def part(chosen):
        found = whole._replace(images=whole.images[chosen], labels=whole.labels[chosen])
        return found if isinstance(dataset, Dataset) else (found.images, found.labels)

    return part(~held_out), part(held_out)


class Batches:
    """The batches of a data set, epoch by epoch; the next one is prepared while the network works on this one.

    `for x, labels in batches:` goes through an epoch, the next such loop through the next; `batches.epoch(k)` is any.

    Args:
        dataset: a `Dataset`, or a pair (inputs, labels) of arrays of your own. Inputs: one or more, pictures (N, C, H, W)
            of any number of channels, or (N, F), or (N, …); bytes (uint8) or floats. Labels: N integers, or floats (N, …),
            the targets of a regression.
        batch_size: inputs a batch; the last one of an epoch is shorter where the division leaves a remainder.
        seed: a non-negative integer that fixes order and augmentation of every epoch (see the head of this file).
        augment: whether to apply `random_crop_flip`; of pictures only.
        padding: of `random_crop_flip`, in pixels.
        alternate: mirror each picture in every other epoch, half of them beginning with the first, instead of by chance:
            two epochs show both sides of every picture (Jordan 2024, section 3.6).
        shuffle: whether every epoch has its own order; otherwise that of the data set.
        mean, std: C numbers each, of a range of 1, for `normalise`: bytes are divided by 255 before, and floats have to be
            from 0 to 1, as torchvision's `ToTensor` makes them. Without them bytes become 0 … 1, and floats, of any range,
            stay what they are.
        image_size: side in pixels to `resize` to; None keeps the pictures as they are.
        device: "cuda" keeps all inputs there, as uint8 or float32, and makes the batches there from the same random
            numbers; what is copied for a batch is those numbers and the labels.
        bfloat16: on a GPU, store the batches in 16 bits, for a network that computes on such (kernels/gpu_bfloat16.py).
        drop_last: leave a shorter last batch out, as in training: batch norm knows little from few pictures, and
            nothing from one. With `shuffle` it leaves out other pictures every epoch.

    Attributes:
        next_epoch: the number of the epoch that the next loop over the batches goes through; to be set when going on.

    Raises:
        ValueError: no inputs, inputs or labels of another kind or number, other channels than mean and std have, a size
            below 1, something for pictures asked of other inputs, or a batch that cannot be filled although short ones
            are to be left out.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int = 0,
        augment: bool = False,
        padding: int = 4,
        alternate: bool = False,
        shuffle: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image_size: int | None = None,
        drop_last: bool = False,
        device: str = "cpu",
        bfloat16: bool = False,
    ):
        dataset = checked(dataset, "Batches")
        count, *shape = dataset.images.shape
        if count == 0:
            raise ValueError(f"Batches: the data set {dataset.name!r} is empty; it needs at least one picture")
        if operator.index(batch_size) < 1:
            raise ValueError(f"Batches: batch_size must be at least 1, got {batch_size}")
        if drop_last and batch_size > count:
            raise ValueError(f"Batches: batch_size must be at most {count}, the number of pictures, got {batch_size}")
        if image_size is not None and operator.index(image_size) < 1:
            raise ValueError(f"Batches: image_size must be at least 1, got {image_size}")
        require_pictures(dataset, augment, padding, image_size, mean, std)
        self.dataset, self.batch_size, self.seed, self.next_epoch = dataset, batch_size, seed, 0
        self.augment, self.shuffle, self.drop_last = augment, shuffle, drop_last
        self.padding, self.alternate, self.device, self.bfloat16 = padding, alternate, device, bfloat16
        self.image_size, self._shape = image_size, tuple(shape)
        # What is no picture goes the same way, as pictures of one pixel.
        self._stored = dataset.images if len(shape) == 3 else dataset.images.reshape(count, -1, 1, 1)
        channels = self._stored.shape[1]
        self.mean = (0.0,) * channels if mean is None else mean
        self.std = (1.0,) * channels if std is None else std
        if device != "cpu":
            kind = np.uint8 if dataset.images.dtype == np.uint8 else np.float32
            on_device = np.ascontiguousarray(self._stored, kind), *affine(self.mean, self.std, kind)
            self._images, *self._affine = (to_device(array, device) for array in on_device)
        if alternate:  # drawn from another free stream, see `split`
            self._mirrored_first = np.random.default_rng((seed, 0, 0, 2)).random(count) < 0.5

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of the next epoch."""
        self.next_epoch += 1
        return self.epoch(self.next_epoch - 1)

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(len(self.dataset.images), self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def epoch(self, k: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches start, start + 1, … of epoch k; of each this rank's share, `ranks.share`.

        Yields:
            x, (N, C, S, S) or (N, …) float32 or bfloat16, channel-major, and labels, (N,) int64 or (N, …) float32; N may
            be 0 for one rank of several.

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
        if len(self._shape) != 3:
            x = as_images(as_maps(x).reshape(*self._shape, -1))
        if self.image_size is not None and x.shape[2:] != (self.image_size, self.image_size):
            x = resize(x, self.image_size)
        if self.bfloat16 and self.device != "cpu":
            x = kernels.run(stored_in_bfloat16, x)
        return x, labels

    def _nothing(self):
        """A batch without a picture."""
        sides = self._shape if self.image_size is None else (self._shape[0], self.image_size, self.image_size)
        x = to_device(as_images(np.empty((*sides, 0), np.float32)), self.device)
        return stored_in_bfloat16(x) if self.bfloat16 and self.device != "cpu" else x

    def _on_cpu(self, draws):
        stored = self._stored
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
            draws[1], draws[2:] = draw_crop_flip((len(chosen), *self._shape), rng, self.padding, flip)
        return draws
