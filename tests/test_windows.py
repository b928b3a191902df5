"""Sliding windows against brute force: ask every tap of every window where it reads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import geometries, poolings

from scratchnet.windows import output_size, pair, tap_slices, taps


def reads(size, kernel, count, stride, padding, dilation):
    """(tap, output, pixel) along one axis for every pixel that is read, one by one."""
    for tap in range(kernel):
        for output in range(count):
            pixel = output * stride + tap * dilation - padding
            if 0 <= pixel < size:
                yield tap, output, pixel


axes = st.tuples(
    st.integers(1, 9), st.integers(1, 5), st.integers(0, 9), st.integers(1, 6), st.integers(0, 9), st.integers(1, 4)
)


@given(axes)
def test_tap_slices_are_the_outputs_that_read_a_pixel_and_what_they_read(axis):
    size, kernel, count, stride, padding, dilation = axis
    got = []
    for tap in range(kernel):
        outputs, pixels = tap_slices(tap, size, count, stride, padding, dilation)
        outputs, pixels = range(count + 1)[outputs], range(size)[pixels]
        assert len(outputs) == len(pixels)
        got += [(tap, output, pixel) for output, pixel in zip(outputs, pixels, strict=True)]
    assert got == list(reads(*axis))


def test_tap_slices_of_every_small_window():
    for size in range(1, 6):
        for count in range(5):
            for stride in range(1, 4):
                for padding in range(5):
                    for offset in range(7):
                        outputs, pixels = tap_slices(offset, size, count, stride, padding, 1)
                        want = [p for p in range(count) if 0 <= p * stride + offset - padding < size]
                        assert list(range(count))[outputs] == want
                        assert list(range(size))[pixels] == [p * stride + offset - padding for p in want]


@given(geometries(side=8))
def test_taps_of_a_convolution(g):
    check_taps(g.size, g.y_shape[2:], g.kernel, g.stride, g.padding, g.dilation)


@given(poolings())
def test_taps_of_a_pooling(p):
    check_taps(p.x_shape[2:], p.y_shape[2:], p.kernel, p.stride, p.padding, (1, 1))


def check_taps(in_size, out_size, kernel, stride, padding, dilation):
    """Outside and inside, side by side, are the pairs (output, pixel) of the tap; each tap comes once, in order."""
    rows, cols = (list(reads(*axis)) for axis in zip(in_size, kernel, out_size, stride, padding, dilation, strict=True))
    want = {}
    for i, p, h in rows:
        for j, q, w in cols:
            want.setdefault((i, j), []).append(((p, q), (h, w)))
    outputs, pixels = (np.moveaxis(np.indices(size), 0, -1)[None] for size in (out_size, in_size))
    got = {}
    for i, j, outside, inside in taps(in_size, out_size, kernel, stride, padding, dilation):
        assert (i, j) not in got
        assert outputs[outside].size > 0
        both = zip(outputs[outside].reshape(-1, 2).tolist(), pixels[inside].reshape(-1, 2).tolist(), strict=True)
        got[i, j] = [(tuple(output), tuple(pixel)) for output, pixel in both]
    assert {tap: sorted(each) for tap, each in got.items()} == {tap: sorted(each) for tap, each in want.items()}
    assert list(got) == sorted(got)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 6), st.integers(0, 6), st.integers(1, 3))
def test_output_size_counts_the_windows_that_fit(size, kernel, stride, padding, dilation):
    span = dilation * (kernel - 1) + 1
    starts = range(0, size + 2 * padding, stride)
    want = sum(start + span <= size + 2 * padding for start in starts)
    got = output_size(size, kernel, stride, padding, dilation)
    assert got == want or (want == 0 and got < 1)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 6), st.data())
def test_ceil_mode_adds_a_window_that_hangs_over_unless_it_starts_in_the_padding(size, kernel, stride, data):
    padding = data.draw(st.integers(0, kernel // 2))
    end = size + 2 * padding  # positions are counted from the left end of the padding
    if kernel > end:
        return
    whole = [start for start in range(0, end, stride) if start + kernel <= end]
    hangs_over = whole[-1] + kernel < end  # something at the end is in no window yet
    one_more = hangs_over and whole[-1] + stride < size + padding
    assert output_size(size, kernel, stride, padding, ceil_mode=True) == len(whole) + one_more
    assert output_size(size, kernel, stride, padding) == len(whole)


@given(poolings())
def test_output_size_is_that_of_pytorch(torch, p):
    y = torch.nn.functional.avg_pool2d(torch.zeros(p.x_shape), *p.options)
    assert tuple(y.shape) == p.y_shape


def test_pair():
    assert pair(3, "x", 1) == (3, 3)
    assert pair((3, 1), "x", 1) == (3, 1)
    assert pair([0, 2], "x", 0) == (0, 2)


NOT_PAIRS = [(0, 1), (-1, 0), ((1, 0), 1), ((1, 2, 3), 1), ((), 0), (1.0, 1), (True, 0), ((1, "2"), 1), (None, 1)]


@pytest.mark.parametrize(("value", "least"), NOT_PAIRS)
def test_pair_refuses_anything_else(value, least):
    message = rf"^Layer: size must be an int of at least {least} or a pair of them, got "
    with pytest.raises(ValueError, match=message) as caught:
        pair(value, "Layer: size", least)
    assert str(caught.value).endswith(f"got {value!r}")
