"""A data set: pictures in memory and what they show, whatever they were read from."""

import hashlib
from typing import NamedTuple

import numpy as np

CHUNK = 1000  # pictures counted at a time


class Dataset(NamedTuple):
    """Pictures in memory and what they show.

    images: (N, 3, H, W) uint8, RGB.  labels: (N,) int64, indices into classes.  name: of the set, for logs.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 (64 hex digits) over pictures and labels: two data sets with equal fingerprints are equal."""
    digest = hashlib.sha256(repr(dataset.images.shape).encode())
    digest.update(np.ascontiguousarray(dataset.images).data)
    digest.update(np.ascontiguousarray(dataset.labels, "<i8").data)  # the same on a big-endian machine
    return digest.hexdigest()


def mean_and_std(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Of each channel over all pixels of all pictures, of a range of 1 and to four decimals, as `normalise` takes them.

    It is the standard deviation of all pixels together, not the mean of the pictures' own, which leaves out how they
    differ from one another. A channel that is the same everywhere has none: it is given 1, and becomes 0 everywhere.

    Args:
        images: (N, C, H, W) uint8, N at least 1. How often each value is there is counted, so that the same pictures give
            the same numbers on every machine, in any order.
    """
    counts = np.zeros((images.shape[1], 256), np.int64)
    for start in range(0, len(images), CHUNK):
        for channel, count in enumerate(counts):
            count += np.bincount(images[start : start + CHUNK, channel].reshape(-1), minlength=256)
    values, share = np.arange(256) / 255, counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
    return [round(float(m), 4) for m in mean], [round(float(s), 4) or 1.0 for s in std]
