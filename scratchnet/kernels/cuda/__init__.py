"""Kernels for the GPU: the layers' functions in few passes over memory, each Python file beside its CUDA source."""

from scratchnet.kernels.cuda import (
    activation,
    augment,
    dense,
    depthwise,
    front,
    loss,
    many,
    norm,
    optimizer,
    pointwise,
    pool,
    rows,
)

__all__ = [
    "activation",
    "augment",
    "dense",
    "depthwise",
    "front",
    "loss",
    "many",
    "norm",
    "optimizer",
    "pointwise",
    "pool",
    "rows",
]
