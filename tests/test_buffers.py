"""Memory that is used again: never while somebody can still see it, never more than the cap, and given back when asked."""

import gc
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scratchnet as sn
from scratchnet.kernels.cpu import buffers
from scratchnet.kernels.cpu.buffers import SMALL, Buffers

VIEWS = {
    "itself": lambda a: a,
    "a slice": lambda a: a[1:2],
    "another shape": lambda a: a.reshape(-1),
    "transposed": lambda a: a.T,
    "another dtype": lambda a: a.view(np.uint8),
    "a view of a view": lambda a: a[:, ::2].T[3:],
    "a field of images": lambda a: sn.as_images(a.reshape(4, -1, 1, 1)),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_buffer_is_free_when_nobody_holds_a_view_of_it(view):
    memory = Buffers(1 << 30)
    array = memory.empty((4, SMALL // 8), np.float32)
    array[...] = 7
    address, held = array.ctypes.data, VIEWS[view](array)
    del array
    other = memory.empty((4, SMALL // 8), np.float32)
    other[...] = 0
    assert memory.kept == 0 and other.ctypes.data != address and np.array(held).any()
    del held
    assert memory.kept > 0
    assert memory.empty((SMALL // 8, 4), np.float32).ctypes.data == address


@given(st.lists(st.integers(SMALL, 4 * SMALL), min_size=1, max_size=12))
def test_what_is_kept_stays_below_the_cap(sizes):
    memory = Buffers(6 * SMALL)
    arrays = [memory.empty((size,), np.uint8) for size in sizes]
    assert all(a.size == size and a.flags.c_contiguous for a, size in zip(arrays, sizes, strict=True))
    del arrays
    assert memory.kept <= memory.cap
    assert memory.kept == sum(buffer.nbytes for free in memory._free.values() for buffer in free)


@given(st.integers(1, 1 << 40))
def test_a_buffer_is_at_most_a_quarter_too_large(size):
    size += SMALL
    assert size <= buffers._size_class(size) <= size + size // 4 and buffers._size_class(size) % 8 == 0


def test_small_arrays_are_numpy_s_own():
    memory = Buffers(1 << 30)
    memory.empty((SMALL - 1,), np.uint8)
    assert memory.kept == 0


def test_several_threads_never_share_a_buffer():
    memory, wrong = Buffers(1 << 30), []

    def work(number):
        for _ in range(300):
            array = memory.empty((SMALL,), np.uint8)
            array[...] = number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not memory._lent


def test_free_memory_gives_back_what_a_step_has_left():
    net = sn.Sequential(sn.BatchNorm2d(8), sn.ReLU6())
    x = sn.as_images(np.ones((8, 64, 64, 4), np.float32))
    net.backward(net(x))
    del net
    gc.collect()
    assert buffers._buffers.kept > x.nbytes
    sn.free_memory()
    assert buffers._buffers.kept == 0
