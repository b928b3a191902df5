"""A program and its threads (fused/program.py): the loops of walk.py follow tables of lowering.py.

Where there are at least as many pictures as threads, each thread takes PICTURES at a time through the whole network,
and no thread ever waits for another. Else all threads go through one program together. Either way a number's bits are
the same.
"""

import numpy as np

from scratchnet.array import as_images
from scratchnet.kernels.compiled.lanes import LANE_BYTES
from scratchnet.kernels.compiled.lowering import lower
from scratchnet.kernels.compiled.meeting import resting_place
from scratchnet.kernels.compiled.walk import walk
from scratchnet.kernels.cpu.buffers import empty
from scratchnet.parallel import cuts, threads

PICTURES = 8  # whose activations lie in a thread's arena; more would read the weights less often, and leave its cache
LINE = 8  # counters of an operation: two, and what fills a line of the cache


def compute(operations, programs, x):
    """The result for x (N, C, H, W), as (N, C, H, W).

    Args:
        operations: `lowering.Operation`s.
        programs: number of pictures -> `lowering.Program`; what is missing is added.
        x: of the operations' dtype, in any memory order.
    """
    n = len(x)
    work = n * sum(op.work for op in operations)
    workers = threads.get_num_threads() if work > cuts.PARALLEL_WORK else 1
    together = n < workers
    panels = [slice(0, n)] if together else cuts.split(n, -(-n // (PICTURES * workers)) * workers)
    for count in {panel.stop - panel.start for panel in panels}:
        if count not in programs:
            programs[count] = lower(operations, count, x.dtype)
    y = empty((*operations[-1].maps[1], n), x.dtype)

    def compute_panel(panel):
        program = programs[panel.stop - panel.start]
        arena = _aligned(program.size, x.dtype)
        _maps(program.source, operations[0].maps[0], panel, arena)[...] = x[panel].transpose(1, 0, 2, 3)
        counters = np.zeros((len(program.table), LINE), np.int64)
        walkers = range(workers if together else 1)
        owns = [_aligned(program.own, x.dtype) for _ in walkers]
        shared = program.table, counters, program.masks, arena
        threads.parallel(lambda k: walk(*shared, owns[k], resting_place()), walkers)
        y[..., panel] = _maps(program.result, operations[-1].maps[1], panel, arena).transpose(0, 2, 3, 1)

    threads.parallel(compute_panel, panels)
    return as_images(y)


def _aligned(size, dtype):
    """So many numbers, the first at the beginning of a vector; else each vector lies in two lines of the cache."""
    numbers = empty((size + LANE_BYTES // dtype.itemsize,), dtype)
    first = -numbers.ctypes.data % LANE_BYTES // dtype.itemsize
    return numbers[first : first + size]


def _maps(found, sizes, panel, arena):
    """An activation in the arena, as (C, N, H, W)."""
    (place, apart), (channels, height, width) = found, sizes
    count = panel.stop - panel.start
    rows = arena[place : place + channels * apart].reshape(channels, apart)[:, : count * height * width]
    return rows.reshape(channels, count, height, width)
