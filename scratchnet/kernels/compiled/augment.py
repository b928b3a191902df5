"""A batch, cut from all pictures: mirrored, shifted and normalised in one pass (training/augment.py).

It is made by the thread that prepares batches, beside a training step: on one thread, and without Python's lock.
"""

import numpy as np

from scratchnet.array import as_images
from scratchnet.kernels.compiled.jit import exact
from scratchnet.kernels.cpu.buffers import empty


def take_batch(images, draws, scale, shift):
    """One pass."""
    _, channels, height, width = images.shape
    batch = empty((channels, height, width, draws.shape[1]), np.float32)
    columns = np.empty((draws.shape[1], width), np.int64)
    _take(np.asarray(images), draws, scale, shift, columns, np.empty(batch.shape[2:], images.dtype), batch)
    return as_images(batch)


@exact
def _take(images, draws, scale, shift, columns, pixels, batch):
    _, channels, height, width = images.shape
    for n in range(len(columns)):
        for x in range(width):
            column = _reflect(x + draws[3, n], width)
            columns[n, x] = width - 1 - column if draws[1, n] > 0 else column
    for c in range(channels):
        a, b = scale[c], shift[c]
        for y in range(height):
            for n in range(len(columns)):
                seen = images[draws[0, n], c, _reflect(y + draws[2, n], height)]
                for x in range(width):
                    pixels[x, n] = seen[columns[n, x]]
            row, flat = batch[c, y].reshape(-1), pixels.reshape(-1)
            for i in range(row.size):
                row[i] = np.float32(flat[i]) * a - b  # two roundings, as `normalise` has


@exact
def _reflect(index, size):
    return (size - 1) - abs((size - 1) - abs(index))
