"""Matrix products on the CPU, cut over the threads: BLAS itself runs on one."""

import numpy as np

from scratchnet.parallel.cuts import PASS, shares
from scratchnet.parallel.threads import parallel

CHUNK = 1 << 12  # columns of a product that one thread computes at a time
PANEL_BYTES = 2 << 20  # of the widest array: so many of its columns at a time stay in a core's cache


def matmul(a, b, out=None):
    """a @ b for a wide b, its columns cut into chunks: the result of a chunk stays in the cache of its core."""
    out = np.empty((len(a), b.shape[1]), a.dtype) if out is None else out
    work = a.size + PASS * (len(out) + len(b))
    parallel(lambda columns: np.matmul(a, b[:, columns], out=out[:, columns]), _chunks(work, b.shape[1]))
    return out


def matmul_transposed(a, b):
    """a @ b.T for wide a and b, as the sum of the products of their chunks, added in the order of the chunks."""
    chunks = _chunks(len(a) * len(b) + PASS * (len(a) + len(b)), b.shape[1])
    return sum(parallel(lambda columns: a[:, columns] @ b[:, columns].T, chunks))


def _chunks(work, columns):
    """The columns in an even number of chunks, or in one where there is too little work, in multiply-adds a column."""
    count = max(1, round(columns / CHUNK))
    return shares(columns, work, count + count % 2)
