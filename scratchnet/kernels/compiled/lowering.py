"""From operations and the size of the input to a program: where each activation lies, and which pictures go when.

A few pictures at a time go through a run of operations, so that what lies between two of them stays in a core's cache
(TARGET bytes); further on, where maps are small, more pictures at a time, so that weights are read less often. An
activation that only such a run needs has room for its pictures alone. Places are used again as soon as the last
operation that reads them is done.
"""

from typing import Any, NamedTuple

import numpy as np

from scratchnet.kernels.compiled import walk as loops
from scratchnet.kernels.compiled.lanes import LANE_BYTES, ROWS
from scratchnet.parallel.cuts import split

TARGET = 256 << 10  # bytes of the largest activation that lies between two operations
PART_WORK = 150_000  # multiply-adds that are worth taking a part
BUNCH_BYTES = 24 << 10  # of the channels between an expansion and its taps
COLUMNS_BYTES = 256 << 10  # of what the taps of a dense convolution read


class Operation(NamedTuple):
    """What a row of the table is made of; a value is numbered, the input is 0 and operation k makes k + 1.

    Attributes:
        kind: one of program.py's.
        x, more: the values that it reads; more is None where nothing is added.
        maps: (channels, height, width) of x, and of what it makes.
        weight, bias, clip: of the product. Arrays are C-contiguous and of the program's dtype.
        taps: weight, bias, clip, stride of the nine taps, or None.
        window: kernel, stride, padding, dilation of a dense convolution, or None.
    """

    kind: int
    x: int
    more: int | None
    maps: tuple
    weight: Any = None
    bias: Any = None
    clip: bool = False
    taps: tuple | None = None
    window: tuple | None = None

    @property
    def work(self):
        """Multiply-adds for a picture."""
        (_, *size), (_, *out_size) = self.maps
        product = 0 if self.weight is None else self.weight.size * np.prod(size if self.taps else out_size)
        return int(product + (9 * self.maps[1][0] * np.prod(size) if self.taps else 0))


class Program(NamedTuple):
    """A table for some number of pictures, and the memory that it wants.

    Attributes:
        table: (rows, FIELDS) integers.
        masks: which lanes of a vector have a pixel under a tap.
        size: numbers of the arena.
        own: numbers that each thread needs for itself.
        source, result: (place, rows, numbers from a row to the next) of input and output in the arena.
    """

    table: np.ndarray
    masks: np.ndarray
    size: int
    own: int
    source: tuple
    result: tuple


def lower(operations, n, dtype):
    """The `Program` for n pictures: runs of operations, and in each a group of pictures after another."""
    itemsize = np.dtype(dtype).itemsize
    lanes = LANE_BYTES // itemsize
    values = [operations[0].maps[0], *(op.maps[1] for op in operations)]
    last = {value: k for k, op in enumerate(operations) for value in (op.x, op.more) if value is not None}
    last[len(operations)] = len(operations)  # the result
    memory, masks, rows = _Memory(margin(values, n, lanes)), _Masks(lanes, n), []

    def place(value, count):
        channels, height, width = values[value]
        apart = _up(count * height * width, lanes) + lanes  # rows a power of two apart would share few lines of a cache
        return memory.take(channels * apart), apart

    wide = {0: place(0, n)}  # those that hold all pictures
    source = wide[0]
    for first, end, count in _runs(operations, n, itemsize):
        wide |= {k + 1: place(k + 1, n) for k in range(first, end) if last[k + 1] >= end}
        own: dict = {}
        for k in range(first, end):
            if k + 1 not in wide:
                own[k + 1] = place(k + 1, count)
            for value in [value for value in own if last[value] == k]:
                memory.give_back(own[value][0])
        for group in split(n, -(-n // count)):
            found = {
                k: (at + group.start * values[k][1] * values[k][2], apart) for k, (at, apart) in wide.items()
            } | own
            rows += [
                _row(op, k, found, group.stop - group.start, masks, lanes)
                for k, op in enumerate(operations[first:end], first)
            ]
        for value in [value for value in wide if last[value] < end]:
            memory.give_back(wide.pop(value)[0])
    table = np.array([[row.get(field, 0) for field in loops.FIELDS] for row in rows], np.int64)
    needs = max(row.get(loops.SPARE, 0) + row.get(loops.OWN_LD, 0) for row in rows)
    result = wide[len(operations)]
    return Program(table, masks.numbers(), memory.size + margin(values, n, lanes), needs, source, result)


def margin(values, n, lanes):
    """Numbers that may be read before and behind the arena: by taps that a mask holds back, and in the last vectors."""
    return max(_up(n * height * width, lanes) for _, height, width in values) + 2 * lanes


def _up(size, unit):
    return -(-size // unit) * unit


def _runs(operations, n, itemsize):
    """(first operation, the one behind the last, pictures at a time)."""
    counts = []
    for op in operations:
        size = max(np.prod(maps) for maps in op.maps) * itemsize
        counts.append(int(min(n, 1 << int(max(1, TARGET // size)).bit_length() - 1)))
    starts = [k for k in range(len(counts)) if k == 0 or counts[k] != counts[k - 1]]
    return [(a, b, counts[a]) for a, b in zip(starts, [*starts[1:], len(counts)], strict=True)]


def _row(op, k, places, count, masks, lanes):
    """A row of the table: operation k for so many pictures, as field: number."""
    (channels, height, width), (made, out_height, out_width) = op.maps
    columns = count * height * width if op.taps else count * out_height * out_width
    (x, x_apart), (y, apart) = places[op.x], places[k + 1]
    row = {
        loops.KIND: op.kind, loops.X: x, loops.X_LD: x_apart, loops.X_ROWS: channels, loops.Y: y, loops.LD: apart,
        loops.Y_ROWS: made, loops.COLUMNS: columns, loops.CLIP: op.clip, loops.HEIGHT: height, loops.WIDTH: width,
        loops.OUT_HEIGHT: out_height, loops.OUT_WIDTH: out_width, loops.ROW_PIECES: 1,
    }  # fmt: skip
    row[loops.MORE], row[loops.MORE_LD] = (-1, 0) if op.more is None else places[op.more]
    parts, tiles = max(1, op.work * count // PART_WORK), -(-made // ROWS)
    if op.weight is not None:
        row |= {loops.W: op.weight.ctypes.data, loops.B: op.bias.ctypes.data}
    if op.kind == loops.PRODUCT:
        row[loops.ROW_PIECES] = min(parts, tiles)
        parts = row[loops.ROW_PIECES] * min(max(1, parts // row[loops.ROW_PIECES]), -(-columns // lanes))
    elif op.taps:
        weight, bias, clip, stride = op.taps
        own = _up(columns + width, lanes) + lanes
        bunch = min(max(1, BUNCH_BYTES // (own * weight.itemsize * ROWS)), tiles) * ROWS if op.weight is not None else 0
        row |= {
            loops.W_TAPS: weight.ctypes.data, loops.B_TAPS: bias.ctypes.data, loops.CLIP_TAPS: clip, loops.STEP: stride,
            loops.MASKS: masks.place(height, width), loops.OWN_LD: own, loops.SPARE: own * (bunch + 2),
            loops.BUNCH: bunch,
        }  # fmt: skip
        parts = min(parts, tiles)
    elif op.window:
        (kernel, stride, padding, dilation), k = op.window, op.weight[0].size
        room = min(COLUMNS_BYTES // (k * op.weight.itemsize), PART_WORK // (made * k))
        together = min(_up(max(room, 64), lanes), _up(columns, lanes))
        parts = -(-columns // together)
        row |= {
            loops.DOWN: kernel[0], loops.ACROSS: kernel[1], loops.STEP: stride[0], loops.STEP_ACROSS: stride[1],
            loops.PAD_DOWN: padding[0], loops.PAD_ACROSS: padding[1], loops.APART_DOWN: dilation[0],
            loops.APART_ACROSS: dilation[1], loops.TOGETHER: together, loops.OWN_LD: together + lanes,
            loops.SPARE: k * (together + lanes),
        }  # fmt: skip
    else:
        parts = 1
    if op.kind in (loops.MEAN, loops.TURN):
        row[loops.COLUMNS] = count
    return row | {loops.PARTS: int(parts)}


class _Memory:
    """Places of an arena: the smallest that is free and large enough, or one at the end."""

    def __init__(self, start):
        self.size, self._free, self._taken = start, [], {}

    def take(self, size):
        """A place for so many numbers."""
        fits = [block for block in self._free if block[1] >= size]
        place, room = min(fits, key=lambda block: block[1]) if fits else (self.size, size)
        if fits:
            self._free.remove((place, room))
            if room > size:
                self._free.append((place + size, room - size))
        else:
            self.size += size
        self._taken[place] = size
        return place

    def give_back(self, place):
        """It is free again, together with what is free beside it."""
        size = self._taken.pop(place)
        for at, room in [block for block in self._free if block[0] + block[1] == place or place + size == block[0]]:
            self._free.remove((at, room))
            place, size = min(at, place), size + room
        self._free.append((place, size))


class _Masks:
    """For a size of picture nine masks for each vector of pixels: the lanes whose tap lies inside."""

    def __init__(self, lanes, n):
        self.lanes, self.n, self._places, self._made, self._size = lanes, n, {}, [], 0

    def place(self, height, width):
        """Where those for this size are."""
        if (height, width) not in self._places:
            pixels = np.arange(_up(self.n * height * width, self.lanes))
            h, w = pixels // width % height, pixels % width
            inside = [
                (0 <= h + i) & (h + i < height) & (0 <= w + j) & (w + j < width) for i in (-1, 0, 1) for j in (-1, 0, 1)
            ]
            bits = np.array(inside).reshape(9, -1, self.lanes) @ (1 << np.arange(self.lanes))  # (tap, vector)
            self._places[height, width], self._size = self._size, self._size + bits.size
            self._made.append(bits.T.ravel())
        return self._places[height, width]

    def numbers(self):
        """All of them, one after another."""
        return np.concatenate([*self._made, [0]]).astype(np.int32)
