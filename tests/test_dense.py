"""The CPU's dense convolutions, in strips and shares so small that every geometry is cut."""

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import geometries, rngs

from scratchnet import kernels, reference
from scratchnet.array import as_images, as_maps
from scratchnet.device import Kind
from scratchnet.kernels import compiled
from scratchnet.kernels.cpu import dense
from scratchnet.layers.conv import GROUPED
from scratchnet.parallel import cuts

VERSIONS = {"numpy": "cpu.dense", "strips": "compiled.dense", "shifts": "compiled.shifts"}
each_version = pytest.mark.parametrize("which", VERSIONS if compiled.PRESENT else ["numpy"])


@pytest.fixture(autouse=True, params=[1, 1 << 12], ids=["a row a strip", "some rows a strip"])
def small_strips(request, monkeypatch):
    monkeypatch.setattr(dense, "PANEL_BYTES", request.param)
    if compiled.PRESENT:
        monkeypatch.setattr("scratchnet.kernels.compiled.dense.STRIP", request.param)
        monkeypatch.setattr("scratchnet.kernels.compiled.shifts.PIECE", min(request.param, 7))
    monkeypatch.setattr(cuts, "PARALLEL_WORK", 0)


def version(which):
    """The forward and the backward of a version."""
    module = importlib.import_module(f"scratchnet.kernels.{VERSIONS[which]}")
    return module.grouped_forward, module.grouped_backward


def drawn(data, which):
    """A geometry that the version takes."""
    return data.draw(geometries(groups=1, **({"stride": (1, 1)} if which == "shifts" else {})))


@each_version
@given(rng=rngs(), data=st.data())
def test_forward_is_the_reference(which, rng, data):
    g = drawn(data, which)
    x, weight, _ = g.arrays(rng)
    args = as_maps(x), weight, *g.options
    kernel = version(which)[0]
    want = reference.conv2d_forward(x, weight, None, *g.options)
    np.testing.assert_allclose(as_images(kernel(*args)), want, rtol=1e-12, atol=1e-12)


@each_version
@given(rng=rngs(), data=st.data())
def test_backward_is_the_reference_and_leaves_what_it_reads(which, rng, data):
    g = drawn(data, which)
    x, weight, _ = g.arrays(rng)
    dy = g.dy(rng)
    given = as_maps(dy), as_maps(x), weight
    before = [array.copy() for array in given]
    kernel = version(which)[1]
    dx, dweight = kernel(*given, *g.options)
    want = reference.conv2d_backward(dy, x, weight, *g.options)
    np.testing.assert_allclose(as_images(dx), want[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dweight, want[1], rtol=1e-12, atol=1e-12)
    for now, then in zip(given, before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.skipif(not compiled.PRESENT, reason="needs Numba")
@pytest.mark.parametrize(
    ("terms", "stride", "groups", "module"),
    [
        (27, 1, 1, "compiled.dense"), (27, 2, 1, "compiled.dense"), (144, 1, 1, "compiled.shifts"),
        (144, 2, 1, "compiled.dense"), (576, 2, 1, "cpu.dense"), (576, 1, 1, "compiled.shifts"),
        (4608, 1, 1, "cpu.dense"), (144, 1, 2, None),
    ],
)  # fmt: skip
def test_which_version_takes_what(terms, stride, groups, module):
    window = (3, 3), (stride, stride), (1, 1), (1, 1)
    pair = kernels.choose(GROUPED, Kind("cpu", "float32"), groups=groups, terms=terms, window=window)
    assert pair.forward.__module__ == f"scratchnet.{f'kernels.{module}' if module else 'layers.conv'}"


@pytest.mark.parametrize(("panel_bytes", "count"), [(1, 17), (16384, 8), (1 << 20, 4)])
def test_rows_are_cut_by_their_size_alone(panel_bytes, count, monkeypatch):
    monkeypatch.setattr(dense, "PANEL_BYTES", panel_bytes)
    matrix, y = np.ones((2, 27)), np.empty((2, 17, 5, 4))
    strips = [strip for rows in dense._shares(matrix, y) for strip in dense._strips(rows, matrix, y)]
    assert [row for strip in strips for row in range(17)[strip]] == list(range(17))
    assert len(strips) == count  # a row's cols are 4,320 bytes
    monkeypatch.setattr(cuts, "PARALLEL_WORK", 17 * 5 * 4 * (54 + dense.PASS * 29))
    assert len(dense._shares(matrix, y)) == 1
