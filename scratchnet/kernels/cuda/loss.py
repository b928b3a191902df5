"""The loss on the GPU, one or two launches each (layers/loss.py)."""

from scratchnet.array import as_images, as_matrix
from scratchnet.device import get_array_module
from scratchnet.kernels.cuda.launch import blocks, launch, reducing
from scratchnet.kernels.cuda.rows import row_sums_of
from scratchnet.parallel import ranks


def cross_entropy_forward(logits, labels, label_smoothing):
    """A thread a picture; the blocks' parts of the loss are added in order."""
    xp, z = get_array_module(logits), as_matrix(logits)  # (N, K) -> (K, N)
    classes, n = z.shape
    log_p, target = xp.empty_like(z), xp.empty_like(z)
    grid = reducing(n)
    parts = xp.empty((1, grid[0]), z.dtype)
    labels = labels.astype("int64", copy=False)
    launch("cross_entropy_forward", (), grid, z, labels, log_p, target, parts, label_smoothing, classes, n)
    loss = row_sums_of(parts).reshape(())
    if ranks.size > 1:
        total, n = ranks.sum_over_ranks(loss * n, n)
        loss = total / n
    return loss, (log_p, target, n)


def cross_entropy_backward(dloss, cache):
    """One pass over all classes and pictures."""
    log_p, target, n = cache
    dz = get_array_module(log_p).empty_like(log_p)
    launch("cross_entropy_backward", (), blocks(dz.size), log_p, target, dz, dloss / n, dz.size)
    return as_images(dz)
