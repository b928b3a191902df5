"""The CPU's ways to convolve depthwise: each of them, on every geometry that it takes, is the layer file's function."""

import numpy as np
import pytest
from hypothesis import given, target
from strategies import geometries, rngs

from scratchnet.array import as_maps
from scratchnet.kernels.cpu import convolve, depthwise
from scratchnet.layers import conv

# how the thresholds must stand for small pictures to be computed in one way or the other
WAYS = {
    "rows": {"ROWS_UP_TO": 99, "WHOLE_MAP": 0},
    "whole map": {"ROWS_UP_TO": 99, "WHOLE_MAP": 999},
    "band": {"ROWS_UP_TO": 0, "WHOLE_MAP": 0},
    "dots": {"ROWS_UP_TO": 99, "DOTS_FROM": 0},
    "products": {"ROWS_UP_TO": 0, "DOTS_FROM": 99},
}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(convolve, name, value)
    convolve.geometry_of.cache_clear()
    yield request.param
    convolve.geometry_of.cache_clear()


def close(ours, want):
    assert (ours.shape, ours.dtype) == (want.shape, want.dtype)
    error = np.abs(ours - want).max() / max(1, np.abs(want).max())
    assert error <= 1e-12
    return error


STRIDE_1 = geometries(ins=1, outs=1, stride=(1, 1), side=8, elements=240)


@pytest.mark.parametrize("drawn", [geometries(ins=1, outs=1, side=8, elements=240), STRIDE_1], ids=["any", "stride 1"])
def test_every_way_is_the_layer_files_function(way, drawn):
    @given(rngs(), drawn)
    def check(rng, g):
        x, weight, _ = g.arrays(rng)
        geometry = weight, g.stride, g.padding, g.dilation
        maps, dy = as_maps(x), as_maps(g.dy(rng))
        errors = [close(depthwise.depthwise_forward(maps, *geometry), conv.depthwise_forward(maps, *geometry))]
        for ours, want in zip(
            depthwise.depthwise_backward(dy, maps, *geometry), conv.depthwise_backward(dy, maps, *geometry), strict=True
        ):
            errors.append(close(ours, want))
        target(max(errors))

    check()


@pytest.mark.parametrize("width", [convolve.ROWS_UP_TO, convolve.ROWS_UP_TO + 1, convolve.DOTS_FROM - 1, 33])
def test_the_thresholds_as_they_stand(width):
    rng = np.random.default_rng(width)
    x, weight = rng.standard_normal((3, 7, width, 2)), rng.standard_normal((3, 1, 3, 3))
    geometry = weight, (1, 1), (1, 1), (1, 1)
    y = depthwise.depthwise_forward(x, *geometry)
    close(y, conv.depthwise_forward(x, *geometry))
    dy = rng.standard_normal(y.shape)
    for ours, want in zip(
        depthwise.depthwise_backward(dy, x, *geometry), conv.depthwise_backward(dy, x, *geometry), strict=True
    ):
        close(ours, want)
    assert convolve.geometry_of((7, width), (3, 3), (1, 1), (1, 1), (1, 1)).is_wide == (width > convolve.ROWS_UP_TO)


def test_rows_that_read_alike_are_one_block():
    """Of a 9×10 map under a 3×3: the first row, seven that have all their neighbours, the last."""
    plan = convolve.Geometry((9, 10), (3, 3), (1, 1), (1, 1), (1, 1))
    assert [(b.first, b.rows, b.repeats, b.source, b.span) for b in plan.blocks] == [
        (0, 1, 1, 0, 2), (1, 1, 7, 0, 3), (8, 1, 1, 7, 2)
    ]  # fmt: skip
    plan = convolve.Geometry((9, 10), (3, 3), (2, 2), (1, 1), (1, 1))  # five rows at twice the step; dx by pairs
    assert [(b.first, b.repeats, b.source, b.step) for b in plan.blocks] == [(0, 1, 0, 0), (1, 3, 1, 2), (4, 1, 7, 0)]
    assert [(b.first, b.rows, b.repeats, b.span) for b in plan.blocks_back] == [(0, 2, 4, 2), (8, 1, 1, 1)]


def test_an_axis_of_size_1_may_have_any_stride():
    """NumPy calls x contiguous whatever the stride of such an axis is: the windows must not believe it."""
    column = np.random.default_rng(0).standard_normal((2, 5, 1, 1))
    odd = np.lib.stride_tricks.as_strided(column, column.shape, (*column.strides[:2], 0, 0))
    assert odd.flags.c_contiguous
    geometry = np.random.default_rng(1).standard_normal((2, 1, 3, 1)), (1, 1), (1, 0), (1, 1)
    close(depthwise.depthwise_forward(odd, *geometry), conv.depthwise_forward(column, *geometry))
