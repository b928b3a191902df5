"""Memory that is used again: a fresh large array costs a page fault every 4 KiB, more than the arithmetic on it.

`empty` hands out arrays in large regions of memory that it keeps, each at the first place that is large enough.
Neighbouring free places are one, so that what many small arrays have left serves a large one, and what is kept is about the
most that a step ever has in use. Every view of an array holds a reference to it, so that when the array itself is gone
nobody can see its numbers, and its place is free again: a weak reference tells that moment.
"""

import bisect
import math
import os
import threading
import weakref
from collections import deque

import numpy as np

SMALL = 1 << 15  # bytes: below this NumPy's own allocation is as fast
REGION = 1 << 26  # bytes at least
ALIGN = 64  # bytes: a line of the cache, and the widest register


def _a_quarter_of_the_memory():
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 4 << 30


class _Memory(np.ndarray):
    """Bytes. As a type of its own it ends NumPy's chain of bases, so that a view of an array on it holds the array."""


class _Loan(weakref.ref):
    """Tells when an array is gone, and which place it had: from `start` to `end` of a region."""

    __slots__ = ("region", "start", "end")
    region: "_Region"
    start: int
    end: int


class _Region:
    """Memory, and its free places: (start, end), in order, no two of them neighbours."""

    def __init__(self, size):
        self.memory = _Memory(size, np.uint8)
        self.free = [(0, size)]

    def take(self, size):
        """The start of the first free place of that size, which is then taken; None where there is none."""
        for k, (start, end) in enumerate(self.free):
            if end - start >= size:
                self.free[k : k + 1] = [(start + size, end)] if end - start > size else []
                return start
        return None

    def give(self, start, end):
        """Make a place free, one with its free neighbours."""
        k = bisect.bisect(self.free, (start, end))
        if k < len(self.free) and self.free[k][0] == end:
            end = self.free.pop(k)[1]
        if k and self.free[k - 1][1] == start:
            k -= 1
            start = self.free.pop(k)[0]
        self.free.insert(k, (start, end))

    def is_free(self):
        """Whether no array has a place in it."""
        return self.free == [(0, self.memory.nbytes)]


class Buffers:
    """Regions of memory; those that nobody uses are given back beyond `cap` free bytes."""

    def __init__(self, cap):
        self.cap = cap
        self._regions: list[_Region] = []
        self._lent: dict[int, _Loan] = {}  # a weak reference has to live to tell
        self._returned: deque[_Loan] = deque()  # an array may go at any moment, also while a place is looked for
        self._lock = threading.Lock()

    @property
    def kept(self):
        """Free bytes."""
        with self._lock:
            self._take_back()
            return self._free_bytes()

    def empty(self, shape, dtype):
        """An uninitialised C-contiguous array."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < SMALL:
            return np.empty(shape, dtype)
        size = -(-size // ALIGN) * ALIGN
        with self._lock:
            self._take_back()
            region, start = self._place(size)
        array = np.ndarray(shape, dtype, region.memory, start)
        loan = _Loan(array, self._gone)
        loan.region, loan.start, loan.end = region, start, start + size
        self._lent[id(loan)] = loan
        return array

    def clear(self):
        """Give every region that nobody uses back to the system; the others live on until their arrays are let go."""
        with self._lock:
            self._take_back()
            self._regions = [region for region in self._regions if not region.is_free()]

    def _place(self, size):
        for region in self._regions:
            if (start := region.take(size)) is not None:
                return region, start
        try:
            region = _Region(max(size, REGION))
        except MemoryError:
            region = _Region(size)
        self._regions.append(region)
        return region, region.take(size)

    def _gone(self, loan):
        self._returned.append(loan)

    def _take_back(self):
        while self._returned:
            loan = self._returned.popleft()
            del self._lent[id(loan)]
            loan.region.give(loan.start, loan.end)
            if loan.region.is_free() and self._free_bytes() > self.cap:
                self._regions.remove(loan.region)

    def _free_bytes(self):
        return sum(end - start for region in self._regions for start, end in region.free)


_buffers = Buffers(_a_quarter_of_the_memory())
empty = _buffers.empty


def free_memory():
    """Give the memory back that is kept for the next step: on the CPU the library's buffers. Arrays in use are not touched.

    What is kept is about as much as the largest step needed, and at most a quarter of the machine's memory where nothing of
    it is in use.
    """
    _buffers.clear()
