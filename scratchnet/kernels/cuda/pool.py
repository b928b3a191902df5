"""Global average pooling on the GPU (layers/pool.py)."""

from scratchnet.array import as_images, as_maps
from scratchnet.device import get_array_module
from scratchnet.kernels.cuda.launch import blocks, launch, sum_dtype


def global_avg_pool2d_forward(x):
    """One pass. Of bfloat16 the means are float32, and so is what comes behind."""
    maps = as_maps(x)
    channels, height, width, n = maps.shape
    y = get_array_module(x).empty((channels, 1, 1, n), sum_dtype(x))
    launch("global_pool", (), blocks(n, channels), maps, y, height * width, n)
    return as_images(y), (maps.shape, maps.dtype)


def global_avg_pool2d_backward(dy, cache):
    """One pass."""
    grad, ((channels, height, width, n), dtype) = as_maps(dy), cache
    dx = get_array_module(dy).empty((channels, height, width, n), dtype)
    launch("global_pool_gradient", (), blocks(n, channels), grad, dx, height * width, n, dtype=dtype.name)
    return as_images(dx)
