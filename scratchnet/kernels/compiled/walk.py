"""The loop that walks a program (fused/program.py): a network at inference as a table of integers, an operation a row.

There is no Python between the layers, and no array is made: each operation reads and writes places of one array, the
arena. An activation is a matrix there, a row a channel, in whose columns the pixels of one picture follow those of
another (so that a few pictures at a time are a range of columns). The operations are

    PRODUCT   a 1×1 convolution or a linear layer, with what its result is added to or clipped by
    EXPAND    the same for a few channels, and at once their nine taps: what lies between stays in the inner cache
    TAPS      a depthwise 3×3 convolution alone
    DENSE     any other convolution of one group: a product with what each tap reads, some columns at a time
    MEAN      over the pixels of each channel of each picture
    TURN      (channel, pixel) becomes one index, as Flatten wants it

Weights are read where they lie, so that a program never holds values that have changed since. An operation is cut into
parts by its shape, and a thread takes one after another (meeting.py).
"""

from scratchnet.kernels.compiled.jit import BLOCK, ZERO, bare, jit, numbers_at, take
from scratchnet.kernels.compiled.lanes import LANE_BYTES, ROWS, VECTORS, end_tile, nine_taps, tile, wide_tile
from scratchnet.kernels.compiled.meeting import finish, wait

PRODUCT, EXPAND, TAPS, DENSE, MEAN, TURN = range(6)
# What a row of the table says. X, Y and MORE are places in the arena, of matrices whose rows are …LD apart; OWN_LD and
# SPARE speak of a thread's own memory; W and B are addresses; MASKS is a place among the masks.
FIELDS = (KIND, PARTS, ROW_PIECES, X, X_LD, X_ROWS, Y, LD, Y_ROWS, COLUMNS, W, B, CLIP, MORE, MORE_LD,
          W_TAPS, B_TAPS, CLIP_TAPS, MASKS, HEIGHT, WIDTH, STEP, OUT_HEIGHT, OUT_WIDTH, OWN_LD, SPARE, BUNCH,
          DOWN, ACROSS, STEP_ACROSS, PAD_DOWN, PAD_ACROSS, APART_DOWN, APART_ACROSS, TOGETHER) = range(35)  # fmt: skip


@jit
def walk(table, counters, masks, arena, own, address):
    """All operations, in order. Any number of threads may do so at once, each with its `own` memory."""
    masks, arena, own = bare(masks), bare(arena), bare(own)
    for k in range(len(table)):
        row, counter = table[k], counters[k]
        part = take(counter)
        while part < row[PARTS]:
            _part(row, part, masks, arena, own)
            finish(counter)
            part = take(counter)
        wait(counter, row[PARTS], address)


@jit
def _part(row, part, masks, arena, own):
    if row[KIND] == PRODUCT:
        _product(row, part, arena)
    elif (row[KIND] == EXPAND) | (row[KIND] == TAPS):
        _taps(row, part, masks, arena, own)
    elif row[KIND] == DENSE:
        _dense(row, part, arena, own)
    elif row[KIND] == MEAN:
        _mean(row, part, arena)
    else:
        _turn(row, part, arena)


@jit
def _matrix(place, rows, apart, numbers):
    return numbers[place : place + rows * apart].reshape(rows, apart)


@jit
def _piece(size, part, parts, unit):
    """The part-th of so many nearly equal pieces of range(size), which begin at multiples of a unit."""
    units = (size + unit - 1) // unit
    return units * part // parts * unit, min(units * (part + 1) // parts * unit, size)


@jit
def _multiply(w, rows, x, columns, bias, more, add, y, clip):
    """These rows and columns of a product."""
    lanes = LANE_BYTES // x.itemsize
    for r in range(rows[0], rows[1], ROWS):
        c, end = columns
        while c + VECTORS * lanes <= end:
            wide_tile(w, r, x, c, VECTORS * lanes, bias, more, add, y, clip)  # (PROG.1)
            c += VECTORS * lanes
        while c + lanes <= end:
            tile(w, r, x, c, lanes, bias, more, add, y, clip)
            c += lanes
        if c < end:
            end_tile(w, r, x, c, end - c, bias, more, add, y, clip)


@jit
def _product(row, part, arena):
    w = numbers_at(row[W], row[Y_ROWS] * row[X_ROWS], arena).reshape(row[Y_ROWS], row[X_ROWS])
    bias = numbers_at(row[B], row[Y_ROWS], arena)
    x, y = _matrix(row[X], row[X_ROWS], row[X_LD], arena), _matrix(row[Y], row[Y_ROWS], row[LD], arena)
    add = row[MORE] >= 0
    more = _matrix(row[MORE], row[Y_ROWS], row[MORE_LD], arena) if add else y
    pieces = row[ROW_PIECES]
    rows = _piece(row[Y_ROWS], part % pieces, pieces, ROWS)
    columns = _piece(row[COLUMNS], part // pieces, row[PARTS] // pieces, LANE_BYTES // arena.itemsize)
    _multiply(w, rows, x, columns, bias, more, add, y, row[CLIP] != 0)


@jit
def _taps(row, part, masks, arena, own):
    """EXPAND and TAPS, BUNCH channels at a time, which lie in `own` with OWN_LD numbers before and behind them."""
    weights, bias = numbers_at(row[W_TAPS], 9 * row[Y_ROWS], arena), numbers_at(row[B_TAPS], row[Y_ROWS], arena)
    first, last = _piece(row[Y_ROWS], part, row[PARTS], ROWS)
    if row[KIND] == TAPS:
        _filter(row, arena, row[X] + first * row[X_LD], row[X_LD], first, last, weights, bias, masks, arena, own)
        return
    w = numbers_at(row[W], row[Y_ROWS] * row[X_ROWS], arena).reshape(row[Y_ROWS], row[X_ROWS])
    b, x = numbers_at(row[B], row[Y_ROWS], arena), _matrix(row[X], row[X_ROWS], row[X_LD], arena)
    wide = _matrix(row[OWN_LD], row[BUNCH], row[OWN_LD], own)
    for r in range(first, last, row[BUNCH]):
        to = min(r + row[BUNCH], last)
        _multiply(w[r:to], (0, to - r), x, (0, row[COLUMNS]), b[r:to], wide, False, wide, row[CLIP] != 0)
        _filter(row, own, row[OWN_LD], row[OWN_LD], r, to, weights, bias, masks, arena, own)


@jit
def _filter(row, x, start, apart, c, end, weights, bias, masks, arena, own):
    """Channels c … end - 1 of a depthwise convolution; one with a stride of 2 keeps every other output of one of 1."""
    lanes = LANE_BYTES // arena.itemsize
    vectors, clip, masks = (row[COLUMNS] + lanes - 1) // lanes, row[CLIP_TAPS] != 0, masks[row[MASKS] :]
    height, width, out_width, ld, spare = row[HEIGHT], row[WIDTH], row[OUT_WIDTH], row[LD], row[SPARE]
    to = row[Y] + c * ld
    if row[STEP] == 1:
        nine_taps(x, start, apart, width, weights, bias, c, end, masks, vectors, arena, to, ld, clip)  # (PROG.3)
        return
    for k in range(end - c):
        at, these = start + k * apart, weights[9 * (c + k) :]
        nine_taps(x, at, 0, width, these, bias[c + k :], 0, 1, masks, vectors, own, spare, 0, clip)
        at = to + k * ld
        for picture in range(row[COLUMNS] // (height * width)):
            for h in range(0, height, 2):
                line = spare + (picture * height + h) * width
                kept, seen = arena[at : at + out_width], own[line : line + 2 * out_width]
                for q in range(out_width):
                    kept[q] = seen[2 * q]
                at += out_width


@jit
def _dense(row, part, arena, own):
    """Some columns of a convolution."""
    taps = row[DOWN] * row[ACROSS]
    w = numbers_at(row[W], row[Y_ROWS] * row[X_ROWS] * taps, arena).reshape(row[Y_ROWS], row[X_ROWS] * taps)
    bias = numbers_at(row[B], row[Y_ROWS], arena)
    first, last = part * row[TOGETHER], min((part + 1) * row[TOGETHER], row[COLUMNS])
    cols = _matrix(0, row[X_ROWS] * taps, row[OWN_LD], own)
    for k in range(len(cols)):
        c, i, j = k // taps, k % taps // row[ACROSS], k % row[ACROSS]
        _read(row, arena, row[X] + c * row[X_LD], i, j, first, cols[k, : last - first])
    y, add = _matrix(row[Y] + first, row[Y_ROWS], row[LD], arena), row[MORE] >= 0
    more = _matrix(row[MORE] + first, row[Y_ROWS], row[MORE_LD], arena) if add else y
    _multiply(w, (0, row[Y_ROWS]), cols, (0, last - first), bias, more, add, y, row[CLIP] != 0)  # (PROG.2)


@jit
def _read(row, arena, start, i, j, first, to):
    """What tap (i, j) reads of a channel for the outputs from the first on, a row of pixels after another (CONV.2)."""
    width, height, step = row[OUT_WIDTH], row[OUT_HEIGHT], row[STEP_ACROSS]
    offset = j * row[APART_ACROSS] - row[PAD_ACROSS]
    inside = (
        max(0, (step - 1 - offset) // step),
        min(width, (row[WIDTH] - 1 - offset) // step + 1),
    )  # outputs with a pixel
    k = 0
    while k < to.size:
        line, q = (first + k) // width, (first + k) % width
        part = to[k : k + width - q]
        k += part.size
        h = line % height * row[STEP] + i * row[APART_DOWN] - row[PAD_DOWN]
        low, high = (inside[0] - q, inside[1] - q) if (h >= 0) & (h < row[HEIGHT]) else (part.size, part.size)
        low, high = min(max(low, 0), part.size), min(max(high, 0), part.size)
        if low > 0:
            part[:low] = ZERO
        if high < part.size:
            part[max(low, high) :] = ZERO
        at = start + (line // height * row[HEIGHT] + h) * row[WIDTH] + (q + low) * step + offset
        if high > low:
            kept, seen = part[low:high], arena[at : at + (high - low - 1) * step + 1]
            if step == 1:
                for m in range(kept.size):
                    kept[m] = seen[m]
            else:
                for m in range(kept.size):
                    kept[m] = seen[m * step]


@jit
def _mean(row, part, arena):
    size = row[HEIGHT] * row[WIDTH]
    first, last = _piece(row[Y_ROWS], part, row[PARTS], 1)
    for c in range(first, last):
        for picture in range(row[COLUMNS]):
            at, s = row[X] + c * row[X_LD] + picture * size, 0.0
            for k in range(0, size, BLOCK):
                pixels, t = arena[at + k : at + min(k + BLOCK, size)], ZERO
                for i in range(pixels.size):
                    t += pixels[i]
                s += t
            arena[row[Y] + c * row[LD] + picture] = s / size  # (GPOOL.1)


@jit
def _turn(row, part, arena):
    size = row[HEIGHT] * row[WIDTH]
    first, last = _piece(row[X_ROWS], part, row[PARTS], 1)
    for c in range(first, last):
        for picture in range(row[COLUMNS]):
            for k in range(size):
                arena[row[Y] + (c * size + k) * row[LD] + picture] = arena[row[X] + c * row[X_LD] + picture * size + k]
