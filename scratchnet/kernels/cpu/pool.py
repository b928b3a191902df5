"""Global average pooling on the CPU, a slab of channels at a time (layers/pool.py)."""

import numpy as np

from scratchnet.array import as_images, as_maps
from scratchnet.kernels.cpu.buffers import empty
from scratchnet.parallel.cuts import slabs
from scratchnet.parallel.threads import parallel


def global_avg_pool2d_forward(x):
    """One pass."""
    maps = as_maps(x)
    y = empty((len(maps), 1, 1, maps.shape[3]), maps.dtype)
    parallel(lambda c: np.mean(maps[c], axis=(1, 2), keepdims=True, out=y[c]), slabs(maps, 2))  # (GPOOL.1)
    return as_images(y), (maps.shape, maps.dtype)


def global_avg_pool2d_backward(dy, cache):
    """One pass."""
    shape, dtype = cache
    share, dx = as_maps(dy) / (shape[1] * shape[2]), empty(shape, dtype)
    parallel(lambda c: np.copyto(dx[c], share[c]), slabs(dx, 1))  # (GPOOL.2)
    return as_images(dx)
