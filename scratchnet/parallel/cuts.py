"""Cuts: into which parts work is cut. By its size alone, never by the number of threads: so any number gives the same bits.

Work is counted in multiply-adds of a matrix product. An operation on every number of an array (a pass) takes as long as
PASS of them, and below PARALLEL_WORK a part is done sooner than a second thread wakes (some 0.3 ms).
"""

PARALLEL_WORK = 1 << 24  # multiply-adds
PASS = 8  # multiply-adds in the time that an operation on one number takes
SHARES = 4  # parts of work whose parts need no particular size
ROWS, LEAST_ROWS, PARTS = 16, 4, 8  # of a matrix, see `few_rows`
SLAB_BYTES = 2 << 20  # measured: smaller slabs pay more for Python and its lock than they win from the inner caches


def split(size, count):
    """`range(size)` in `count` nearly equal slices, none of them empty."""
    count = min(count, size)
    return [slice(size * k // count, size * (k + 1) // count) for k in range(count)]


def shares(size, work, count=SHARES):
    """`range(size)` in `count` parts, or in one where the work, in multiply-adds for each of `size`, is too little."""
    return split(size, count if size * work > PARALLEL_WORK else 1)


def slabs(maps, passes):
    """The channels of an array (C, …) in slabs of about SLAB_BYTES, an even number of them for two cores.

    A slab stays in a core's cache through all the passes over it. One slab is everything where there is too little work.
    """
    count = max(2, -(-maps.nbytes // SLAB_BYTES))
    return shares(len(maps), maps[0].size * passes * PASS, count + count % 2)


def panels(columns, column_bytes, panel_bytes, least=64):
    """The columns of a share (a slice) in panels of about `panel_bytes`, at least `least` columns each."""
    width = max(least, panel_bytes // column_bytes)
    return [slice(k, min(k + width, columns.stop)) for k in range(columns.start, columns.stop, width)]


def few_rows(rows, row_bytes):
    """How many rows of a matrix one thread computes at a time, with all that follows from them.

    ROWS, which a product wants; fewer where they would not stay in the cache, or would be too few parts for the threads.
    """
    few = ROWS
    while few > LEAST_ROWS and (few * row_bytes > SLAB_BYTES or few * PARTS > rows):
        few //= 2
    return few
