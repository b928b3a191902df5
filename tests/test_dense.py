"""The CPU's dense convolutions, in strips and shares so small that every geometry is cut."""

import numpy as np
import pytest
from conformance import CPU_KERNELS
from hypothesis import given
from strategies import geometries, rngs

import scratchnet as sn
from scratchnet import kernels, reference
from scratchnet.array import as_images, as_maps
from scratchnet.device import kind_of
from scratchnet.kernels import compiled
from scratchnet.kernels.cpu import dense
from scratchnet.layers.conv import GROUPED
from scratchnet.parallel import cuts

dense_geometries = geometries(groups=1)


@pytest.fixture(autouse=True, params=[1, 1 << 12], ids=["a row a strip", "some rows a strip"])
def small_strips(request, monkeypatch):
    monkeypatch.setattr(dense, "PANEL_BYTES", request.param)
    if compiled.PRESENT:
        monkeypatch.setattr("scratchnet.kernels.compiled.dense.STRIP", request.param)
    monkeypatch.setattr(cuts, "PARALLEL_WORK", 0)


def chosen(which, x, weight):
    with sn.use_kernels(which):
        pair = kernels.choose(GROUPED, kind_of(x), groups=1, terms=weight[0].size)
    assert pair.version == (which if weight[0].size <= 64 else "numpy")
    return pair


@pytest.mark.parametrize("which", CPU_KERNELS)
@given(rng=rngs(), g=dense_geometries)
def test_forward_is_the_reference(which, rng, g):
    x, weight, _ = g.arrays(rng)
    args = as_maps(x), weight, *g.options
    kernel = chosen(which, x, weight).forward
    want = reference.conv2d_forward(x, weight, None, *g.options)
    np.testing.assert_allclose(as_images(kernel(*args)), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("which", CPU_KERNELS)
@given(rng=rngs(), g=dense_geometries)
def test_backward_is_the_reference_and_leaves_what_it_reads(which, rng, g):
    x, weight, _ = g.arrays(rng)
    dy = g.dy(rng)
    given = as_maps(dy), as_maps(x), weight
    before = [array.copy() for array in given]
    kernel = chosen(which, x, weight).backward
    dx, dweight = kernel(*given, *g.options)
    want = reference.conv2d_backward(dy, x, weight, *g.options)
    np.testing.assert_allclose(as_images(dx), want[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dweight, want[1], rtol=1e-12, atol=1e-12)
    for now, then in zip(given, before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize(("panel_bytes", "count"), [(1, 17), (16384, 8), (1 << 20, 4)])
def test_rows_are_cut_by_their_size_alone(panel_bytes, count, monkeypatch):
    monkeypatch.setattr(dense, "PANEL_BYTES", panel_bytes)
    matrix, y = np.ones((2, 27)), np.empty((2, 17, 5, 4))
    strips = [strip for rows in dense._shares(matrix, y) for strip in dense._strips(rows, matrix, y)]
    assert [row for strip in strips for row in range(17)[strip]] == list(range(17))
    assert len(strips) == count  # a row's cols are 4,320 bytes
    monkeypatch.setattr(cuts, "PARALLEL_WORK", 17 * 5 * 4 * (54 + dense.PASS * 29))
    assert len(dense._shares(matrix, y)) == 1
