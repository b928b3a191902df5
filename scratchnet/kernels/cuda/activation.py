"""ReLU6, sums and bounds on the GPU (layers/activation.py, layers/join.py, fused/inference.py)."""

from scratchnet.array import as_images, as_matrix
from scratchnet.device import get_array_module
from scratchnet.kernels.cuda.launch import blocks, launch, vector


def relu6_forward(x):
    """Two passes."""
    rows = as_matrix(x)
    y = get_array_module(x).empty_like(rows)
    flat = rows.size
    v = vector(flat, rows, y)
    launch("relu6_forward", (v,), blocks(flat // v), rows, y, flat)
    y = as_images(y, x)
    return y, y


def relu6_backward(dy, cache):
    """Three passes."""
    grad, y = as_matrix(dy), as_matrix(cache)
    dx = get_array_module(dy).empty_like(grad)
    v = vector(grad.size, grad, y, dx)
    launch("relu6_backward", (v,), blocks(grad.size // v), grad, y, dx, grad.size)
    return as_images(dx, dy)


def add(a, b):
    """Three passes."""
    left, right = as_matrix(a), as_matrix(b)
    y = get_array_module(a).empty_like(left)
    v = vector(y.size, left, right, y)
    launch("add", (v,), blocks(y.size // v), left, right, y, y.size)
    return as_images(y, a)


def shift_and_clip(y, bias):
    """One pass, in place (FOLD.2)."""
    v = vector(y.shape[1], y)
    launch("clip_rows", (v,), blocks(y.shape[1] // v, len(y)), y, bias, y.shape[1])
