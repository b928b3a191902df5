"""A program and its threads (fused/program.py): the loops of walk.py follow tables of lowering.py.

Where there are at least as many pictures as threads, each thread takes PICTURES at a time through the whole network,
and no thread ever waits for another. Else all threads go through one program together. Either way a number's bits are
the same.
"""

import numpy as np

from scratchnet.array import as_images
from scratchnet.kernels.compiled.lanes import LANE_BYTES
from scratchnet.kernels.compiled.lowering import Program, lower
from scratchnet.kernels.compiled.meeting import resting_place
from scratchnet.kernels.compiled.walk import walk
from scratchnet.kernels.cpu.buffers import empty
from scratchnet.parallel import cuts, threads

PICTURES = 8  # in a thread's arena; more would read the weights less often, and leave the cache
LINE = 8  # counters of an operation: two, and what fills a line of the cache


class Inference:
    """What operations compute, for any number of pictures of one size.

    Args:
        operations: `lowering.Operation`s.
    """

    def __init__(self, operations):
        self.operations = operations
        self._work = sum(op.work for op in operations)
        self._programs: dict[int, Program] = {}  # number of pictures -> the program for them

    def __call__(self, x):
        """The result, (N, C, H, W), for x (N, C, H, W) of the operations' dtype, in any memory order."""
        n = len(x)
        workers = threads.get_num_threads() if n * self._work > cuts.PARALLEL_WORK else 1
        together = n < workers
        panels = [slice(0, n)] if together else cuts.split(n, -(-n // (PICTURES * workers)) * workers)
        for count in {panel.stop - panel.start for panel in panels}:
            if count not in self._programs:
                self._programs[count] = lower(self.operations, count, x.dtype)
        y = empty((*self.operations[-1].maps[1], n), x.dtype)
        threads.parallel(lambda panel: self._compute(x[panel], y[..., panel], workers if together else 1), panels)
        return as_images(y)

    def _compute(self, x, y, walkers):
        """Write the result for x (n, C, H, W) to y (C, H, W, n)."""
        program = self._programs[len(x)]
        arena, own = _aligned(program.size, x.dtype), [_aligned(program.own, x.dtype) for _ in range(walkers)]
        _maps(program.source, x.transpose(1, 0, 2, 3).shape, arena)[...] = x.transpose(1, 0, 2, 3)
        shared = program.table, np.zeros((len(program.table), LINE), np.int64), program.masks, arena
        threads.parallel(lambda k: walk(*shared, own[k], resting_place()), range(walkers))
        y[...] = _maps(program.result, y.transpose(0, 3, 1, 2).shape, arena).transpose(0, 2, 3, 1)


def _aligned(size, dtype):
    """So many numbers, the first at the beginning of a vector; else each vector lies in two lines of the cache."""
    numbers = empty((size + LANE_BYTES // dtype.itemsize,), dtype)
    first = -numbers.ctypes.data % LANE_BYTES // dtype.itemsize
    return numbers[first : first + size]


def _maps(found, shape, arena):
    """An activation (C, N, H, W) in the arena."""
    (place, apart), (channels, count, height, width) = found, shape
    rows = arena[place : place + channels * apart].reshape(channels, apart)[:, : count * height * width]
    return rows.reshape(shape)
