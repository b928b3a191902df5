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
    free = memory.kept
    assert other.ctypes.data != address and np.array(held).any()
    del held
    assert memory.kept == free + other.nbytes
    assert memory.empty((SMALL // 8, 4), np.float32).ctypes.data == address


@given(st.lists(st.tuples(st.integers(SMALL, 4 * SMALL), st.booleans()), min_size=1, max_size=24), st.randoms())
def test_no_two_arrays_overlap_and_what_is_let_go_is_one_free_place_again(steps, random):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "REGION", 8 * SMALL)
        memory, arrays = Buffers(1 << 30), []
        for size, lets_go in steps:
            arrays.append(memory.empty((size,), np.uint8))
            assert arrays[-1].size == size and arrays[-1].ctypes.data % 16 == 0 and arrays[-1].flags.c_contiguous
            if lets_go:
                arrays.pop(random.randrange(len(arrays)))
            places = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays)
            assert all(end <= start for (_, end), (start, _) in zip(places, places[1:], strict=False))
        used = sum(-(-a.nbytes // buffers.ALIGN) * buffers.ALIGN for a in arrays)
        assert memory.kept == sum(region.memory.nbytes for region in memory._regions) - used
        arrays.clear()
        assert memory.kept and all(region.is_free() for region in memory._regions)


def test_what_small_arrays_have_left_serves_a_large_one():
    memory = Buffers(1 << 30)
    small = [memory.empty((SMALL,), np.uint8) for _ in range(8)]
    address = small[0].ctypes.data
    del small
    assert memory.empty((8 * SMALL,), np.uint8).ctypes.data == address


def test_beyond_the_cap_regions_that_nobody_uses_are_given_back(monkeypatch):
    monkeypatch.setattr(buffers, "REGION", SMALL)
    memory = Buffers(3 * SMALL)
    arrays = [memory.empty((SMALL,), np.uint8) for _ in range(8)]
    assert memory.kept == 0
    del arrays
    assert memory.kept == 3 * SMALL


def test_where_a_region_cannot_be_had_the_array_may_be(monkeypatch):
    asked = []

    class Region(buffers._Region):
        def __init__(self, size):
            asked.append(size)
            if size == buffers.REGION:
                raise MemoryError
            super().__init__(size)

    monkeypatch.setattr(buffers, "_Region", Region)
    assert Buffers(1 << 30).empty((SMALL,), np.uint8).size == SMALL
    assert asked == [buffers.REGION, SMALL]


def test_small_arrays_are_numpy_s_own():
    memory = Buffers(1 << 30)
    memory.empty((SMALL - 1,), np.uint8)
    assert not memory._regions


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
    assert memory.kept == sum(region.memory.nbytes for region in memory._regions)
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
