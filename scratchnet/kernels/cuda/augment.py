"""A batch, cut from the pictures that lie on the GPU (training/augment.py)."""

from scratchnet.array import as_images
from scratchnet.device import get_array_module
from scratchnet.kernels.cuda.launch import blocks, launch


def take_batch(images, draws, scale, shift):
    """One launch: a thread a pixel of the batch, which looks up where it comes from."""
    _, channels, h, w = images.shape
    n = draws.shape[1]
    out = get_array_module(images).empty((channels, h, w, n), scale.dtype)
    launch("take_batch", (), blocks(h * w * n, channels), images, draws, scale, shift, out, h, w, n, dtype="float32")
    return as_images(out)
