"""What `Batches` takes, checked before the first step: one clear error instead of numbers that mean nothing."""

import math
from typing import Any

import numpy as np

from scratchnet.data.dataset import Dataset


def checked(dataset: Any, who: str) -> Dataset:
    """The data set with pictures and labels as NumPy arrays; ValueError, opened by `who`, where they are none of ours."""
    if not isinstance(dataset, Dataset):
        if not isinstance(dataset, tuple | list) or len(dataset) != 2:
            raise ValueError(f"{who}: expected a Dataset or a pair (inputs, labels), got {type(dataset).__name__}")
        dataset = Dataset(dataset[0], dataset[1], (), "arrays")
    images, labels = np.asarray(dataset.images), np.asarray(dataset.labels)
    if images.ndim < 2 or images.dtype != np.uint8 and images.dtype.kind != "f":
        kinds = "(N, C, H, W) or (N, F), floats or uint8"
        raise ValueError(f"{who}: inputs must be {kinds}, got {images.shape} {images.dtype}")
    targets = labels.dtype.kind == "f" and labels.size > 0  # of an empty list NumPy makes floats
    if labels.ndim < 1 or not targets and (labels.ndim > 1 or labels.size and labels.dtype.kind not in "iu"):
        kinds = "(N,) integers, or floats (N, …), the targets of a regression"
        raise ValueError(f"{who}: labels must be {kinds}, got {labels.shape} {labels.dtype}")
    if len(images) != len(labels):
        raise ValueError(f"{who}: as many labels as inputs, got {len(labels)} and {len(images)}")
    for what, array in (("inputs", images), ("labels", labels)):
        if array.dtype.kind == "f" and (bad := array.size - np.count_nonzero(np.isfinite(array))):
            raise ValueError(f"{who}: {what} must be finite, got {bad} numbers that are infinite or NaN")
    return dataset._replace(images=images, labels=labels.astype(np.float32 if targets else np.int64, copy=False))


def require_pictures(dataset, augment, padding, image_size, mean, std):
    """Refuse what is asked of inputs that are not made for it."""
    images, labels = dataset.images, dataset.labels
    if images.ndim != 4:
        for name, value in {"augment": augment or None, "image_size": image_size, "mean": mean, "std": std}.items():
            if value is not None:
                raise ValueError(f"Batches: {name} is for pictures (N, C, H, W), got inputs {images.shape}")
    if augment and labels.ndim > 2:
        raise ValueError(f"Batches: augment would move the pictures and not their labels, which are {labels.shape}")
    if augment and not 0 <= padding < min(images.shape[2:]):
        h, w = images.shape[2:]
        raise ValueError(f"Batches: padding must be 0 to {min(h, w) - 1} for {h}×{w} pictures, got {padding}")
    if (mean is None) != (std is None):
        raise ValueError("Batches: mean and std belong together: give both, or none of them")
    if mean is None or std is None:
        return
    if not len(mean) == len(std) == images.shape[1]:
        sizes = f"pictures with {images.shape[1]} channels need {images.shape[1]} numbers each"
        raise ValueError(f"Batches: {sizes} in mean and std, got {len(mean)} and {len(std)}")
    if not (min(std) > 0 and math.isfinite(sum(mean) + sum(std))):
        raise ValueError(f"Batches: std must be above 0 in every channel, got {tuple(std)}")
    if images.dtype.kind == "f":
        low, high = images.min(initial=0), images.max(initial=1)
        if not (low == 0 and high == 1):
            raise ValueError(
                f"Batches: with mean and std, pictures of floats must be numbers from 0 to 1, got {low:g} to {high:g}: "
                "scale them, or normalise them yourself and leave mean and std out"
            )
