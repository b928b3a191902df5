"""Storage in bfloat16: the numbers are rounded to 8 bits where they lie in memory, and nowhere else.

NumPy has no bfloat16: here it is a uint16, the upper half of a float32.
"""

import numpy as np
import pytest
from hostmodule import HostModule, has_compiler
from hypothesis import given
from hypothesis import strategies as st
from strategies import rngs

from scratchnet.kernels import gpu
from scratchnet.layers.conv import depthwise_backward, depthwise_forward
from scratchnet.layers.norm import batch_norm_backward, batch_norm_forward

pytestmark = pytest.mark.skipif(not has_compiler(), reason="g++ is not installed")

HALF_ULP = 2.0**-8  # of a number in bfloat16, relative, at most


def stored(x):
    """float32 -> bfloat16 as uint16, to the nearest, ties to even: by NumPy's own rounding of integers."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.float64) / (1 << 16)
    return np.rint(bits).astype(np.uint16)


def read(halves):
    return (halves.astype(np.uint32) << 16).view(np.float32)


def launch(name, template, channels, *args, blocks=2):
    kernel = gpu.kernels()[name]
    values = [
        arg if isinstance(arg, np.ndarray) else np.dtype(p.of("bfloat16")).type(arg)
        for p, arg in zip(kernel.parameters, args, strict=True)
    ]
    module = HostModule(gpu.text(kernel.source), gpu.OPTIONS, gpu.instantiations(kernel.source, "bfloat16"))
    module.get_function(gpu.expression(name, "bfloat16", *template))((blocks, channels), (64,), values)


def within(got, want, scale):
    """Half a unit of each stored number, and float32's own rounding of numbers as large as `scale`."""
    assert (np.abs(read(got) - want) <= np.abs(want) * HALF_ULP + 1e-5 * scale).all()


@given(st.lists(st.floats(width=32), min_size=8, max_size=8))
def test_rounding_is_to_the_nearest_even(values):
    x = np.array(values, np.float32)
    got = np.zeros((1, 8), np.uint16)
    code = gpu.text("loss") + "template <class T> __global__ void k(const float* x, T* y) { *y = T(*x); }"
    kernel = HostModule(code, gpu.OPTIONS, ("k<bfloat16>",)).get_function("k<bfloat16>")
    for i in range(8):
        kernel((1,), (1,), (x[i : i + 1], got[0, i : i + 1]))
    nan = np.isnan(x)
    assert np.isnan(read(got[0])[nan]).all()
    np.testing.assert_array_equal(got[0][~nan], stored(x[~nan]))


@given(rngs(), st.integers(1, 4), st.sampled_from([8, 30, 200]), st.booleans())
def test_batch_norm(rng, channels, m, far):
    x, dy = stored(rng.standard_normal((2, channels, m)) + 30 * far)
    weight, bias = rng.uniform(0.5, 2, (2, channels)).astype(np.float32)
    v, eps = (8 if m % 8 == 0 else 1), 1e-3
    given_ = (read(value).astype(np.float64).T for value in (x, dy))
    want_y, want_mean, want_var, cache = batch_norm_forward(next(given_), weight, bias, eps)
    want_dx, want_dweight, want_dbias = batch_norm_backward(next(given_), cache)
    parts, (mean, var, inv_std) = np.empty((channels, 2, 3), np.float32), np.empty((3, channels), np.float32)
    launch("row_moments", (v,), channels, x, parts, m)
    launch("combine_moments", (), 1, parts, mean, var, inv_std, eps, channels, 2)
    np.testing.assert_allclose(mean, want_mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(var, want_var, rtol=1e-4, atol=1e-5)
    y, dx = np.zeros((2, channels, m), np.uint16)
    launch("normalise", (v, False), channels, x, mean, inv_std, weight, bias, y, m)
    within(y, want_y.T, 40)
    products, (dweight, dbias) = np.empty((channels, 2, 2), np.float32), np.empty((2, channels), np.float32)
    launch("row_products", (v, False), channels, dy, x, mean, inv_std, weight, bias, products, m)
    launch("combine_products", (), 1, products, inv_std, dweight, dbias, channels, 2)
    size = np.abs(read(dy)).sum(axis=1).max()
    np.testing.assert_allclose(dbias, want_dbias, rtol=0, atol=1e-5 * size)
    np.testing.assert_allclose(dweight, want_dweight, rtol=0, atol=1e-4 * size)
    launch("norm_gradient", (v, False), channels, dy, x, mean, inv_std, weight, bias, dweight, dbias, dx, m)
    within(dx, want_dx.T, np.abs(weight * inv_std).max() * np.abs(read(dy)).max() * 10)


@given(rngs(), st.integers(1, 3), st.sampled_from([1, 40]), st.sampled_from([3, 2]), st.integers(1, 2))
def test_depthwise(rng, channels, n, k, stride):
    x = stored(rng.standard_normal((channels, 6, 5, n)))
    weight = rng.standard_normal((channels, 1, k, k)).astype(np.float32)
    options = (stride, 1), (1, 1), (1, 1)
    want_y = depthwise_forward(read(x), weight, *options)
    dy = stored(rng.standard_normal(want_y.shape))
    want_dx, want_dweight = depthwise_backward(read(dy), read(x), weight, *options)
    sizes = *x.shape[1:], *want_y.shape[1:3], k, k, *options[0], *options[1], *options[2]
    y, dx = np.zeros(want_y.shape, np.uint16), np.zeros(x.shape, np.uint16)
    side, group = (3, 9) if k == 3 else (0, 1)
    launch("depthwise_forward", (side,), channels, x, weight, y, *sizes)
    within(y, want_y, 10)
    launch("depthwise_input_gradient", (side,), channels, dy, weight, dx, *sizes)
    within(dx, want_dx, 10)
    parts, dweight = np.empty((channels, 2, k * k), np.float32), np.empty((channels, k * k), np.float32)
    launch("depthwise_weight_gradient", (group,), channels, dy, x, parts, *sizes)
    launch("combine_sums", (), 1, parts, dweight, channels, 2, k * k)
    np.testing.assert_allclose(dweight.reshape(weight.shape), want_dweight, rtol=0, atol=1e-5 * dy[0].size)
