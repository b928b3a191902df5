"""Every CUDA kernel computes what the layer's file says: the source as host code, over drawn shapes and thread orders.

The plain functions of the layers' files, on NumPy, are the reference. Faults that a GPU would hide are planted and must be
noticed.
"""

import numpy as np
import pytest
from hostmodule import ORDERS, HostKernelError, HostModule, has_compiler
from hypothesis import given
from hypothesis import strategies as st
from strategies import Geometry, geometries, rngs

from scratchnet.array import as_images, as_maps, as_matrix
from scratchnet.kernels.cuda import launch as cuda_launch
from scratchnet.layers.activation import relu6_backward, relu6_forward
from scratchnet.layers.conv import depthwise_backward, depthwise_forward, grouped_backward, grouped_forward
from scratchnet.layers.loss import cross_entropy_backward, cross_entropy_forward
from scratchnet.layers.norm import batch_norm_backward, batch_norm_forward, track_statistics
from scratchnet.layers.pool import global_avg_pool2d_backward, global_avg_pool2d_forward
from scratchnet.training.adaptive import adam_update, rmsprop_update
from scratchnet.training.augment import draw_crop_flip, normalise, random_crop_flip
from scratchnet.training.optim import sgd_update

pytestmark = pytest.mark.skipif(not has_compiler(), reason="g++ is not installed")

DTYPES = st.sampled_from(["float32", "float64"])
RTOL = {"float32": 1e-5, "float64": 1e-12}
EPS = 1e-3


class Launcher:
    """Launches kernels on NumPy arrays, every one in the same order, with grids of drawn sizes."""

    def __init__(self, dtype, order, blocks, threads):
        self.dtype, self.order, self.blocks, self.threads = dtype, order, blocks, threads

    def __call__(self, name, template, channels, *args, blocks=None):
        kernel = cuda_launch.declared()[name]
        values = [
            arg if isinstance(arg, np.ndarray) else np.dtype(p.of(self.dtype)).type(arg)
            for p, arg in zip(kernel.arguments, args, strict=True)
        ]
        module = HostModule(
            cuda_launch.text(kernel.source), cuda_launch.OPTIONS, cuda_launch.instantiations(kernel.source, self.dtype)
        )
        function = module.get_function(cuda_launch.expression(name, self.dtype, *template))
        function((blocks or self.blocks, channels), (self.threads,), values, order=self.order)

    def table(self, name, rows):
        """A kernel that takes a table, of NumPy arrays and numbers."""
        kernel, table = cuda_launch.declared()[name], np.zeros(1, cuda_launch.layout(name, self.dtype))
        for column, args in zip(kernel.arguments, zip(*rows, strict=True), strict=True):
            table[column.name][0, : len(rows)] = [arg.ctypes.data if column.pointer else arg for arg in args]
        module = HostModule(
            cuda_launch.text(kernel.source), cuda_launch.OPTIONS, cuda_launch.instantiations(kernel.source, self.dtype)
        )
        function = module.get_function(cuda_launch.expression(name, self.dtype))
        function((self.blocks, len(rows)), (self.threads,), (table[0],), order=self.order)

    def empty(self, *shape):
        return np.full(shape, np.nan, self.dtype)

    def products(self, parts, inv_std, dweight, dbias):
        """The second pass over parts (C, blocks, 2 + k): dweight, dbias, and the other sums, which it returns."""
        channels, count, width = parts.shape
        others = self.empty(channels, width - 2)
        self("combine_products", (), channels, parts, inv_std, dweight, dbias, others, count, width - 2, blocks=1)
        return others

    def sums(self, parts):
        """The second pass over parts (C, blocks, …)."""
        out = self.empty(len(parts), *parts.shape[2:])
        width = max(1, out.size // len(parts))
        self("combine_sums", (), len(parts), parts, out, parts.shape[1], width, blocks=1)
        return out


launchers = st.builds(Launcher, DTYPES, st.integers(0, ORDERS - 1), st.integers(1, 3), st.sampled_from([32, 64]))


def close(got, want, rtol, scale=None):
    """To rtol of the largest number of the array, or of `scale`."""
    assert got.shape == want.shape
    scale = np.abs(want).max() if scale is None else scale
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * max(scale, 1e-3))


def word(dtype, m, wide):
    """Numbers a thread loads at once, where rows of m allow it."""
    count = 16 // np.dtype(dtype).itemsize
    return count if wide and m % count == 0 else 1


# Batch norm -----------------------------------------------------------------------------------------------------------


def statistics(run, rows, v):
    channels, m = rows.shape
    parts, (mean, var, inv_std) = run.empty(channels, run.blocks, 3), run.empty(3, channels)
    run("row_moments", (v,), channels, rows, parts, m)
    run("combine_moments", (), channels, parts, mean, var, inv_std, EPS, run.blocks, blocks=1)
    return mean, var, inv_std


@given(launchers, rngs(), st.integers(1, 5), st.integers(2, 150), st.booleans(), st.sampled_from([0.0, 30.0, 1e3]))
def test_batch_norm(run, rng, channels, m, wide, far):
    x = (rng.standard_normal((channels, m)) + far).astype(run.dtype)
    dy = rng.standard_normal((channels, m)).astype(run.dtype)
    weight, bias = rng.uniform(0.5, 2, (2, channels)).astype(run.dtype)
    v, rtol = word(run.dtype, m, wide), RTOL[run.dtype] * (1 + far)  # a far mean takes digits from x itself
    want_y, want_mean, want_var, cache = batch_norm_forward(*map(np.float64, (x.T, weight, bias)), EPS)
    want_dx, want_dweight, want_dbias = batch_norm_backward(dy.T.astype(np.float64), cache)

    mean, var, inv_std = statistics(run, x, v)
    close(mean, want_mean, RTOL[run.dtype])
    close(var, want_var, rtol)
    y, dx, parts = run.empty(channels, m), run.empty(channels, m), run.empty(channels, run.blocks, 2)
    run("normalise", (v, False), channels, x, mean, inv_std, weight, bias, y, m)
    close(y.T, want_y, rtol)
    dweight, dbias = run.empty(2, channels)
    run("row_products", (v, False), channels, dy, x, mean, inv_std, weight, bias, parts, m)
    run.products(parts, inv_std, dweight, dbias)
    close(dbias, want_dbias, rtol, np.abs(dy).sum(axis=1).max())
    close(dweight, want_dweight, rtol, np.abs(dy).sum(axis=1).max() * 2)
    run("norm_gradient", (v, False), channels, dy, x, mean, inv_std, weight, bias, dweight, dbias, dx, m)
    close(dx.T, want_dx, 4 * rtol, np.abs(dy).max() * np.abs(weight * inv_std).max())


@given(launchers, rngs(), st.integers(1, 4), st.integers(2, 90), st.booleans())
def test_batch_norm_and_what_is_behind_it(run, rng, channels, m, wide):
    """With CLIP it is ReLU6, the mask of backward being that of forward, to the bit; or a shortcut ends there."""
    x, dy, shortcut = rng.standard_normal((3, channels, m)).astype(run.dtype)
    weight, bias = rng.uniform(1, 4, channels).astype(run.dtype), rng.uniform(0, 6, channels).astype(run.dtype)
    v, rtol = word(run.dtype, m, wide), RTOL[run.dtype]
    mean, var, inv_std = statistics(run, x, v)
    y, dx, parts = run.empty(channels, m), run.empty(channels, m), run.empty(channels, run.blocks, 2)
    run("normalise", (v, True), channels, x, mean, inv_std, weight, bias, y, m)
    plain, _, _, cache = batch_norm_forward(*map(np.float64, (x.T, weight, bias)), EPS)
    close(y.T, relu6_forward(plain)[0], 4 * rtol, 6)
    added = run.empty(channels, m)
    run("normalise_and_add", (v,), channels, x, mean, inv_std, weight, bias, shortcut, added, m)
    close(added, plain.T + shortcut, 4 * rtol, 6)
    inside = (y > 0) & (y < 6)
    want_dx, want_dweight, want_dbias = batch_norm_backward((dy * inside).T.astype(np.float64), cache)
    dweight, dbias = run.empty(2, channels)
    run("row_products", (v, True), channels, dy, x, mean, inv_std, weight, bias, parts, m)
    run.products(parts, inv_std, dweight, dbias)
    close(dbias, want_dbias, rtol, np.abs(dy).sum(axis=1).max())
    close(dweight, want_dweight, rtol, np.abs(dy).sum(axis=1).max() * 2)
    run("norm_gradient", (v, True), channels, dy, x, mean, inv_std, weight, bias, dweight, dbias, dx, m)
    close(dx, want_dx.T, 10 * rtol, np.abs(dy).max() * np.abs(weight * inv_std).max())


@given(launchers, rngs(), st.integers(1, 3), st.integers(1, 150), st.integers(1, 11))
def test_sums_over_parts(run, rng, channels, parts, width):
    """Second passes, with more parts than a block has threads, fewer, and parts of no number."""
    numbers, counts = rng.standard_normal((channels, parts, 7)) + 5, rng.integers(0, 8, parts)
    counts[rng.integers(parts)] = 7
    own = [[(k, row[:k].mean(), k * row[:k].var()) if k else (0, 0, 0) for row, k in zip(rows, counts, strict=True)]
           for rows in numbers]  # fmt: skip
    mean, var, inv_std = run.empty(3, channels)
    moments = np.array(own).astype(run.dtype)
    run("combine_moments", (), channels, moments, mean, var, inv_std, EPS, parts, blocks=1)
    every = [np.concatenate([row[:k] for row, k in zip(rows, counts, strict=True)]) for rows in numbers]
    close(mean, np.array([x.mean() for x in every]), RTOL[run.dtype])
    close(var, np.array([x.var() for x in every]), 9 * RTOL[run.dtype])
    close(inv_std, 1 / np.sqrt(np.array([x.var() for x in every]) + EPS), 40 * RTOL[run.dtype])
    sums = rng.standard_normal((channels, parts, width)).astype(run.dtype)
    close(run.sums(sums), sums.astype(np.float64).sum(axis=1), RTOL[run.dtype], parts)
    joined, (dweight, dbias) = (
        np.concatenate([sums[:, :, :1], 3 * sums[:, :, :1], sums], axis=2),
        run.empty(2, channels),
    )
    close(run.products(joined, inv_std, dweight, dbias), sums.astype(np.float64).sum(axis=1), RTOL[run.dtype], parts)
    want = joined.astype(np.float64).sum(axis=1)
    close(dbias, want[:, 0], RTOL[run.dtype], parts)
    close(dweight, want[:, 1] * inv_std, RTOL[run.dtype], 3 * parts * inv_std.max())


# Rectifiers and what surrounds a product ------------------------------------------------------------------------------


@given(launchers, rngs(), st.integers(1, 4), st.integers(1, 90), st.booleans())
def test_rectifiers_and_rows(run, rng, channels, m, wide):
    x = (3 + 4 * rng.standard_normal((channels, m))).astype(run.dtype)
    x[rng.random(x.shape) < 0.2] = 0
    x[rng.random(x.shape) < 0.2] = 6
    dy, v = rng.standard_normal((channels, m)).astype(run.dtype), word(run.dtype, m, wide)
    column = rng.standard_normal(channels).astype(run.dtype)
    want_y, cache = relu6_forward(x.T)
    want_dx = relu6_backward(dy.T, cache)
    y, dx = run.empty(channels, m), run.empty(channels, m)
    run("relu6_forward", (v,), channels, x, y, m)
    np.testing.assert_array_equal(y.T, want_y)
    run("relu6_backward", (v,), channels, dy, y, dx, m)
    np.testing.assert_array_equal(dx.T, want_dx)
    clipped = x.copy()
    run("clip_rows", (v,), channels, clipped, column, m)
    np.testing.assert_array_equal(clipped, np.clip(x + column[:, None], 0, 6))
    run("add", (v,), channels, x, dy, y, m)
    np.testing.assert_array_equal(y, x + dy)


def test_nan_passes_the_rectifiers_both_ways():
    run = Launcher("float32", 0, 1, 32)
    x = np.array([[np.nan, 1, 7]], np.float32)
    y, dx = run.empty(1, 3), run.empty(1, 3)
    run("relu6_forward", (1,), 1, x, y, 3)
    run("relu6_backward", (1,), 1, np.full((1, 3), 2, np.float32), y, dx, 3)
    np.testing.assert_array_equal(y, [[np.nan, 1, 6]])
    np.testing.assert_array_equal(dx, [[2, 2, 0]])


# Convolutions ---------------------------------------------------------------------------------------------------------


def sizes(x, geometry, out_shape):
    return *x.shape[1:], *out_shape[1:3], *geometry.kernel, *geometry.stride, *geometry.padding, *geometry.dilation


def maps(rng, run, channels, size, n):
    return rng.standard_normal((channels, *size, n)).astype(run.dtype)


@given(launchers, rngs(), geometries(), st.sampled_from([1, 3, 33]), st.integers(1, 3))
def test_depthwise_of_any_window(run, rng, geometry, n, channels):
    x = maps(rng, run, channels, geometry.size, n)
    weight = rng.standard_normal((channels, 1, *geometry.kernel)).astype(run.dtype)
    options = geometry.stride, geometry.padding, geometry.dilation
    want_y = depthwise_forward(x.astype(np.float64), weight.astype(np.float64), *options)
    dy = rng.standard_normal(want_y.shape).astype(run.dtype)
    want_dx, want_dweight = depthwise_backward(*map(np.float64, (dy, x, weight)), *options)
    ints, rtol = sizes(x, geometry, want_y.shape), RTOL[run.dtype]

    y, again = run.empty(*want_y.shape), run.empty(*want_y.shape)
    run("depthwise_forward", (), channels, x, weight, y, *ints)
    close(y, want_y, rtol, 3)
    parts = run.empty(channels, run.blocks, 3)
    run("depthwise_moments", (), channels, x, weight, again, parts, *ints)
    np.testing.assert_array_equal(again, y)
    held_to_moments(run, parts, want_y, 3)
    dx = run.empty(*x.shape)
    run("depthwise_input_gradient", (), channels, dy, weight, dx, *ints)
    close(dx, want_dx, rtol, 3)
    parts = run.empty(channels, run.blocks, *geometry.kernel)
    run("depthwise_weight_gradient", (), channels, dy, x, parts, *ints)
    close(run.sums(parts).reshape(weight.shape), want_dweight, rtol, dy[0].size)


def held_to_moments(run, parts, want, scale):
    """Parts that a kernel left are those of the rows of `want`, numbers of about `scale`."""
    mean, var, inv_std = run.empty(3, len(want))
    run("combine_moments", (), len(want), parts, mean, var, inv_std, EPS, run.blocks, blocks=1)
    rows = want.reshape(len(want), -1)
    close(mean, rows.mean(axis=1), RTOL[run.dtype], scale)
    close(var, rows.var(axis=1), RTOL[run.dtype], scale**2)
    return mean, var, inv_std


PICTURES = st.sampled_from([1, 2, 3, 4, 5, 8, 12, 33, 36])  # some fill words, some do not, some are fewer than a word


@given(
    launchers, rngs(), st.tuples(st.integers(1, 9), st.integers(1, 7)), PICTURES, st.integers(1, 2), st.integers(1, 2),
    st.tuples(st.integers(0, 4), st.integers(0, 4)), st.integers(1, 9), st.booleans(),
)  # fmt: skip
def test_depthwise_of_3x3(run, rng, size, n, channels, stride, padding, rows, wide):
    """Threads that slide, over columns of any length and any share of them."""
    padding = tuple(max(p, (4 - s) // 2) for p, s in zip(padding, size, strict=True))  # a window must fit
    x, v = maps(rng, run, channels, size, n), word(run.dtype, n, wide)
    weight, options = maps(rng, run, channels, (1, 3), 3), ((stride, stride), padding, (1, 1))
    want_y = depthwise_forward(*map(np.float64, (x, weight)), *options)
    dy = rng.standard_normal(want_y.shape).astype(run.dtype)
    want_dx, want_dweight = depthwise_backward(*map(np.float64, (dy, x, weight)), *options)
    ints, rtol = (*x.shape[1:], *want_y.shape[1:3], *padding, rows), RTOL[run.dtype]

    y, again, dx = run.empty(*want_y.shape), run.empty(*want_y.shape), run.empty(*x.shape)
    run("window_forward", (v, stride), channels, x, weight, y, *ints)
    close(y, want_y, rtol, 3)
    parts = run.empty(channels, run.blocks, 3)
    run("window_moments", (v, stride), channels, x, weight, again, parts, *ints)
    np.testing.assert_array_equal(again, y)
    held_to_moments(run, parts, want_y, 3)
    parts = run.empty(channels, run.blocks, 9)
    run("window_backward", (v, stride), channels, dy, x, weight, dx, parts, *ints)
    close(dx, want_dx, rtol, 3)
    close(run.sums(parts).reshape(weight.shape), want_dweight, rtol, dy[0].size)


@given(
    launchers, rngs(), st.tuples(st.integers(1, 9), st.integers(1, 7)), PICTURES, st.integers(1, 2), st.integers(1, 2),
    st.integers(1, 9), st.booleans(),
)  # fmt: skip
def test_the_front_of_a_block(run, rng, size, n, channels, stride, rows, wide):
    """y1 and h2 are made on the way in: z2, and g with all sums, are those of the layers' functions, mask and all."""
    z1, v, rtol = maps(rng, run, channels, size, n), word(run.dtype, n, wide), RTOL[run.dtype]
    z1 += np.array(2, run.dtype)
    weight, options = maps(rng, run, channels, (1, 3), 3), ((stride, stride), (1, 1), (1, 1))
    gamma1, gamma2 = rng.uniform(1, 4, (2, channels)).astype(run.dtype)
    beta1, beta2 = rng.uniform(0, 6, (2, channels)).astype(run.dtype)
    wide_rows = z1.reshape(channels, -1)
    mean1, _, inv_std1 = statistics(run, wide_rows, 1)
    first, y1 = (mean1, inv_std1, gamma1, beta1), run.empty(*wide_rows.shape)
    run("normalise", (1, True), channels, wide_rows, *first, y1, y1.shape[1])
    want_z2 = depthwise_forward(*map(np.float64, (y1.reshape(z1.shape), weight)), *options)
    ints = *z1.shape[1:], *want_z2.shape[1:3], 1, 1, rows

    z2, parts = run.empty(*want_z2.shape), run.empty(channels, run.blocks, 3)
    run("front_forward", (v, stride), channels, z1, *first, weight, z2, parts, *ints)
    close(z2, want_z2, rtol, 30)
    mean2, var2, inv_std2 = held_to_moments(run, parts, want_z2, 30)

    second, deep, y2 = (mean2, inv_std2, gamma2, beta2), z2.reshape(channels, -1), run.empty(channels, z2[0].size)
    run("normalise", (1, True), channels, deep, *second, y2, y2.shape[1])
    dy2 = rng.standard_normal(z2.shape).astype(run.dtype)
    masked = dy2.reshape(deep.shape) * ((y2 > 0) & (y2 < 6)).astype(np.float64)
    _, _, _, cache = batch_norm_forward(*map(np.float64, (deep.T, gamma2, beta2)), EPS)
    dz2, dgamma2, dbeta2 = batch_norm_backward(masked.T, cache)
    want_dy1, want_dweight = depthwise_backward(
        dz2.T.reshape(z2.shape), *map(np.float64, (y1.reshape(z1.shape), weight)), *options
    )
    want_g = want_dy1.reshape(y1.shape) * ((y1 > 0) & (y1 < 6))
    g, parts = run.empty(*z1.shape), run.empty(channels, run.blocks, 2 + 9)
    sums = dgamma2.astype(run.dtype), dbeta2.astype(run.dtype)
    alike = rng.integers(0, 2, channels).astype(np.int32)
    arrays = dy2, z2, z1, *second, *sums, *first, alike, weight, g, parts
    run("front_backward", (v, stride), channels, *arrays, *ints)
    steep = 10 * max(1, (gamma2 * inv_std2).max())
    factors = np.where(alike, 1, gamma1 * inv_std1.astype(np.float64))[:, None]
    close(g.reshape(y1.shape) / factors, want_g, rtol, 3 * steep)
    dgamma1, dbeta1 = run.empty(2, channels)
    dweight = run.products(parts, inv_std1, dgamma1, dbeta1)
    close(dweight.reshape(weight.shape), want_dweight, rtol, 6 * steep * z2[0].size)
    close(dbeta1, want_g.sum(axis=1), rtol, 3 * steep * y1.shape[1])
    ahead = (wide_rows - mean1[:, None].astype(np.float64)) * inv_std1[:, None]
    close(dgamma1, (want_g * ahead).sum(axis=1), rtol, 9 * steep * y1.shape[1])


def expansion(rng, run, wide, channels, m):
    """x (C, M), W (E, C); of two rows in three the statistics follow from x with all digits, of the third with none."""
    x = rng.standard_normal((channels, m)) + rng.uniform(-1, 1, (channels, 1))
    x[-1] = x[0] + 1e-6 * rng.standard_normal(m)
    weight = rng.standard_normal((wide, channels))
    weight[2::3] = 0
    weight[2::3, 0], weight[2::3, -1] = 1, -1
    return x.astype(run.dtype), weight.astype(run.dtype)


EXPANSIONS = st.integers(1, 9), st.sampled_from([2, 3, 5, 33, 40]), st.integers(60, 150), st.booleans()


@given(launchers, rngs(), *EXPANSIONS, st.sampled_from([1e-20, 1.0]))
def test_statistics_of_an_expansion(run, rng, wide, channels, m, words, eps):
    """Each row's mean and variance, from x where it is safe, else from z: here another array, to tell them apart."""
    x, weight = expansion(rng, run, wide, channels, m)
    z = (3 + rng.standard_normal((wide, m))).astype(run.dtype)
    parts, second = run.empty(channels, run.blocks, 3), x @ x.T
    run("row_moments", (1,), channels, x, parts, m)
    (mixed, mean_x), (mean, var, inv_std) = (run.empty(wide, channels), run.empty(channels)), run.empty(3, wide)
    alike, v = np.full(wide, 7, np.int32), word(run.dtype, m, words)
    arrays = weight, second, parts, z, mixed, mean_x, mean, var, inv_std, alike
    run("covariance_moments", (v,), wide, *arrays, eps, 1e-3, m, channels, run.blocks, blocks=1)
    x, weight, rtol = x.astype(np.float64), weight.astype(np.float64), RTOL[run.dtype]
    close(mean_x, x.mean(axis=1), rtol, 1)
    close(mixed, weight @ x @ x.T / m, rtol, 2 * channels)
    made = weight @ x
    most = np.abs(weight) @ np.sqrt((x**2).mean(axis=1))
    left = (made.var(axis=1) + eps) * channels / most**2
    assert (left[2::3] < 1e-9).all() or eps == 1
    near = np.abs(left - 1e-3) < 1e-4
    np.testing.assert_array_equal(alike[~near], left[~near] < 1e-3)
    made[alike > 0] = z[alike > 0]
    close(mean, made.mean(axis=1), rtol, 3 * channels)
    close(var, made.var(axis=1), rtol, 9 * channels**2)
    close(inv_std, 1 / np.sqrt(var.astype(np.float64) + eps), rtol)


@given(launchers, rngs(), *EXPANSIONS)
def test_gradients_of_an_expansion(run, rng, wide, channels, m, words):
    """dW and dX from g are those from dZ, which is made of alike rows alone; mean and sums are of more ranks than this."""
    x, weight = expansion(rng, run, wide, channels, m)
    z, g = weight @ x, rng.standard_normal((wide, m)).astype(run.dtype)
    inv_std, gamma, dgamma, dbeta, shifted = rng.uniform(0.5, 2, (5, wide)).astype(run.dtype)
    dgamma, dbeta, mean_x, own_mean = m * dgamma, m * dbeta, x.mean(axis=1), z.mean(axis=1)
    mean, alike = own_mean + shifted, rng.integers(0, 2, wide).astype(np.int32)
    dz = g - (dbeta / m)[:, None] - (z - mean[:, None]) * (inv_std * dgamma / m)[:, None].astype(np.float64)
    dz *= (gamma * inv_std)[:, None]

    joined, mixed = run.empty(wide + channels + 2, m), weight @ (x @ x.T / m)
    joined[:wide] = g * np.where(alike, 1, gamma * inv_std)[:, None]
    saved, v = (mean, inv_std, gamma, dgamma, dbeta), word(run.dtype, m, words)
    arrays = z, x, alike, *saved, joined[:wide], joined[wide:]
    run("alike_gradient", (v,), len(joined), *arrays, m, wide, channels)
    np.testing.assert_array_equal(joined[wide:-2], x)
    assert (joined[-2:] == 1).all()
    size, rtol = 30 * channels, 4 * RTOL[run.dtype]
    close(joined[:wide][alike > 0], dz[alike > 0], rtol, size)
    np.testing.assert_array_equal(joined[:wide][alike == 0], (g * (gamma * inv_std)[:, None])[alike == 0])
    factor, dweight = run.empty(len(joined), channels), run.empty(wide, channels)
    arrays = weight, mixed, mean_x, alike, own_mean, *saved, factor, dweight
    run("front_factor", (), channels, *arrays, m, wide, channels, False, blocks=1)
    close(dweight + joined[:wide] @ x.T, dz @ x.T, rtol, size * m)
    close(factor.T @ joined, weight.T.astype(np.float64) @ dz, rtol, size * wide * channels)
    if run.dtype == "float32":
        held_to_be_coarse(run, factor, arrays, m, wide, channels)


def held_to_be_coarse(run, exact, arrays, m, wide, channels):
    """For TF32: numbers that it does not round, of which a column's on the whole is that of x̄ · mix as it was before."""
    factor, (_, _, mean_x, *_) = run.empty(*exact.shape), arrays
    run("front_factor", (), channels, *arrays[:-2], factor, arrays[-1], m, wide, channels, True, blocks=1)
    behind = factor[wide:-1]
    np.testing.assert_array_equal(behind.view(np.uint32) << 16, np.zeros_like(behind, np.uint32))
    close(behind, exact[wide:-1], 2.0**-7, np.abs(exact[wide:]).max())
    of_all = [mean_x @ each[wide:-2].astype(np.float64) + each[-2:].sum(axis=0) for each in (factor, exact)]
    close(*of_all, RTOL["float32"], 4 * np.abs(exact[wide:]).max() * max(1, np.abs(mean_x).sum()))


@given(launchers, rngs(), geometries(), st.sampled_from([1, 3, 33]), st.integers(1, 3))
def test_im2col_and_back(run, rng, geometry, n, channels):
    x, outs = maps(rng, run, channels, geometry.size, n), 2
    weight = rng.standard_normal((outs, channels, *geometry.kernel)).astype(run.dtype)
    options = geometry.stride, geometry.padding, geometry.dilation, 1
    want_y = grouped_forward(x, weight, *options)
    dy = rng.standard_normal(want_y.shape).astype(run.dtype)
    want_dx, _ = grouped_backward(dy, x, weight, *options)
    ints, matrix = sizes(x, geometry, want_y.shape), weight.reshape(outs, -1)
    cols, dx = run.empty(matrix.shape[1], dy[0].size), run.empty(*x.shape)
    run("im2col", (), channels, x, cols, *ints)
    close((matrix @ cols).reshape(want_y.shape), want_y, RTOL[run.dtype], 9)
    run("col2im", (), channels, matrix.T @ dy.reshape(outs, -1), dx, *ints)
    close(dx, want_dx, RTOL[run.dtype], 9)


# Training -------------------------------------------------------------------------------------------------------------


@given(launchers, rngs(), st.integers(1, 70), st.integers(1, 11), st.sampled_from([0.0, 0.1, 1.0]), st.booleans())
def test_cross_entropy(run, rng, n, classes, smoothing, far):
    logits = (rng.standard_normal((classes, n)) * 3 + 1000 * far).astype(run.dtype)
    labels = rng.integers(0, classes, n)
    loss, cache = cross_entropy_forward(as_images(logits.astype(np.float64)), labels, smoothing)
    log_p, target = run.empty(2, classes, n)
    parts = run.empty(1, run.blocks)
    run("cross_entropy_forward", (), 1, logits, labels, log_p, target, parts, smoothing, classes, n)
    rtol = RTOL[run.dtype] * (100 if far else 1)
    close(log_p, cache[0], rtol, 10)
    close(target, cache[1], RTOL[run.dtype])
    close(run.sums(parts)[0], loss, rtol, 10)
    dz = run.empty(classes, n)
    run("cross_entropy_backward", (), 1, log_p, target, dz, 0.7 / n, classes * n)
    close(dz, as_matrix(cross_entropy_backward(0.7, cache)), 10 * rtol, 1 / n)


@given(launchers, rngs(), st.integers(1, 200), st.sampled_from([0.0, 0.9]), st.booleans(), st.sampled_from([0.0, 0.3]))
def test_sgd(run, rng, m, momentum, nesterov, decay):
    data, grad, velocity = rng.standard_normal((3, m)).astype(run.dtype)
    want, want_velocity = data.copy(), velocity.copy() if momentum else None
    sgd_update(want, grad, want_velocity, 0.1, momentum, bool(nesterov and momentum), decay)
    if momentum:
        run("sgd_momentum", (bool(nesterov),), 1, data, grad, velocity, 0.1, momentum, decay, m)
        close(velocity, want_velocity, RTOL[run.dtype])
    else:
        run("sgd", (), 1, data, grad, 0.1, decay, m)
    close(data, want, RTOL[run.dtype])


@given(launchers, rngs(), st.integers(1, 200), st.sampled_from([1, 2, 1000]), st.sampled_from([0.0, 0.3]))
def test_adam(run, rng, m, step, decay):
    data, grad, mean, square = rng.standard_normal((4, m)).astype(run.dtype)
    square **= 2
    want = [value.copy() for value in (data, mean, square)]
    adam_update(want[0], grad, *want[1:], step, 0.1, (0.9, 0.99), 1e-3, decay)
    rates = 0.1 / (1 - 0.9**step), 0.9, 0.99, 1 - 0.9, 1 - 0.99, 1 / np.sqrt(1 - 0.99**step)
    run("adam", (), 1, data, grad, mean, square, *map(float, rates), 1e-3, decay, m)
    for got, expected in zip((data, mean, square), want, strict=True):
        close(got, expected, 4 * RTOL[run.dtype])


@given(launchers, rngs(), st.integers(1, 200), st.booleans(), st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 0.3]))
def test_rmsprop(run, rng, m, centered, momentum, decay):
    data, grad, square, mean, velocity = rng.standard_normal((5, m)).astype(run.dtype)
    square[...] = square**2 + (mean**2 if centered else 0) - (1e-3 if centered and m > 1 else 0) * (np.arange(m) == 0)
    want = [value.copy() for value in (data, square, mean, velocity)]
    slots = want[2] if centered else None, want[3] if momentum else None
    rmsprop_update(want[0], grad, want[1], *slots, 0.1, 0.9, 1e-1, momentum, decay)
    slots = mean if centered else grad, velocity if momentum else grad
    numbers = 0.1, 0.9, 1 - 0.9, 1e-1, momentum, decay
    run("rmsprop", (centered, bool(momentum)), 1, data, grad, square, *slots, *numbers, m)
    for got, expected in zip((data, square, mean, velocity), want, strict=True):
        close(got, expected, 64 * RTOL[run.dtype])


def test_rmsprop_cuts_off_a_variance_below_0():
    run = Launcher("float32", 0, 1, 32)
    data, grad, square, mean = (np.array([value], np.float32) for value in (1, 1, 0.5, 1))
    run("rmsprop", (True, False), 1, data, grad, square, mean, grad, 0.1, 0.5, 0.5, 0.1, 0.0, 0.0, 1)
    assert square[0] < mean[0] ** 2
    np.testing.assert_allclose(data, 1 - 0.1 / 0.1, atol=1e-6)


@given(launchers, rngs(), st.integers(1, 80), st.sampled_from([0.1, 1.0]), st.integers(2, 9))
def test_running_statistics(run, rng, channels, momentum, count):
    running_mean, mean = rng.standard_normal((2, channels)).astype(run.dtype)
    running_var, var = rng.uniform(0.1, 2, (2, channels)).astype(run.dtype)
    counter = np.array([7])
    want = running_mean.copy(), running_var.copy(), counter.copy()
    track_statistics(*want, mean, var, momentum, count)
    numbers = momentum, count / (count - 1)
    run.table("track_all", [(running_mean, running_var, counter, mean, var, *numbers, channels)])
    close(running_mean, want[0], RTOL[run.dtype])
    close(running_var, want[1], RTOL[run.dtype])
    assert counter == want[2] == 8


@given(launchers, rngs(), st.lists(st.integers(1, 80), min_size=1, max_size=5))
def test_sums_of_many(run, rng, sizes):
    """Each array lies between others, which nobody writes."""
    memory, terms = rng.standard_normal((2, sum(sizes) + len(sizes))).astype(run.dtype)
    want, rows, start = memory.copy(), [], 0
    for size in sizes:
        place = slice(start, start + size)
        want[place] += terms[place]
        rows.append((memory[place], terms[place], size))
        start += size + 1
    run.table("add_to_all", rows)
    assert (memory == want).all()


@given(launchers, rngs(), st.integers(1, 9), st.integers(2, 9), st.integers(2, 9), st.integers(1, 40))
def test_take_batch(run, rng, total, h, w, n):
    """Against the functions that the CPU uses, with the largest padding that is legal."""
    images = rng.integers(0, 256, (total, 3, h, w), dtype=np.uint8)
    chosen, padding, mean, std = rng.integers(0, total, n), min(h, w) - 1, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    want = normalise(random_crop_flip(images[chosen], np.random.default_rng(5), padding), mean, std)
    draws = np.zeros((4, n), np.int32)
    draws[0], (draws[1], draws[2:]) = chosen, draw_crop_flip((n, 3, h, w), np.random.default_rng(5), padding, None)
    scale, shift = (1 / (255 * np.array(std))).astype(run.dtype), (np.array(mean) / std).astype(run.dtype)
    out = run.empty(3, h, w, n)
    run("take_batch", (), 3, images, draws, scale, shift, out, h, w, n)
    np.testing.assert_allclose(as_images(out), want, rtol=0, atol=2e-6)


@given(launchers, rngs(), st.integers(1, 4), st.integers(1, 9), st.integers(1, 80))
def test_global_pooling(run, rng, channels, pixels, n):
    x, dy = rng.standard_normal((channels, pixels, 1, n)).astype(run.dtype), rng.standard_normal((channels, 1, 1, n))
    want, cache = global_avg_pool2d_forward(as_images(x.astype(np.float64)))
    y, dx, dy = run.empty(channels, n), run.empty(*x.shape), dy.astype(run.dtype)
    run("global_pool", (), channels, x, y, pixels, n)
    close(y, want[:, :, 0, 0].T, RTOL[run.dtype], 3)
    run("global_pool_gradient", (), channels, dy, dx, pixels, n)
    close(dx, as_maps(global_avg_pool2d_backward(as_images(dy.astype(np.float64)), cache)), RTOL[run.dtype], 3)


# Faults ---------------------------------------------------------------------------------------------------------------

DEPTHWISE = Geometry(3, 1, 1, 3, (6, 5), (3, 3), (2, 3), (1, 2), (1, 2))
NORM, CLIPPED = (test_batch_norm, (3, 70, False, 0.0)), (test_batch_norm_and_what_is_behind_it, (3, 70, False))
CONVOLVED, ROWS = (test_depthwise_of_any_window, (DEPTHWISE, 33, 2)), (test_rectifiers_and_rows, (3, 72, True))
SLID, HALF = ((test_depthwise_of_3x3, ((7, 5), 36, 2, s, (1, 2), 3, True)) for s in (1, 2))
FRONT, PARTS = (test_the_front_of_a_block, ((7, 5), 36, 2, 1, 3, True)), (test_sums_over_parts, (2, 150, 9))
MEASURED = test_statistics_of_an_expansion, (5, 40, 72, True, 1e-20)
EXPANDED = test_gradients_of_an_expansion, (5, 40, 72, True)
COPIED = test_im2col_and_back, (DEPTHWISE, 33, 2)
LOSS, SGD = (test_cross_entropy, (70, 5, 0.1, False)), (test_sgd, (150, 0.9, True, 0.3))
RMS = test_rmsprop, (150, True, 0.9, 0.3)
ADAM, TRACK = (test_adam, (150, 2, 0.3)), (test_running_statistics, (70, 0.1, 3))
BATCH, POOLED = (test_take_batch, (4, 5, 7, 33)), (test_global_pooling, (2, 3, 70))

MANY = test_sums_of_many, ([5, 40, 1],)
FAULTS = [  # (file, what stands there, what is put there instead, which test with which arguments sees it)
    ("common", "  __syncthreads();\n  if (threadIdx.x == 0)\n    for", "  if (threadIdx.x == 0)\n    for", NORM),
    ("common", "  __syncthreads();  // before the next call writes to parts\n", "", PARTS),
    ("common", "  __syncthreads();  // before the next call writes to parts\n", "", CONVOLVED),
    ("common", "own;\n  __syncthreads();", "own;", NORM),
    ("common", "for (int w = 1; w < blockDim.x / 32; ++w) sums", "for (int w = 2; w < blockDim.x / 32; ++w) sums", NORM),
    ("common", "offset = 16; offset; offset /= 2) {", "offset = 8; offset; offset /= 2) {", NORM),
    ("common", "a.squares += b.squares + step * step", "a.squares += b.squares; a.mean += 0 * step", NORM),
    ("common", "const A d = x - shift;", "const A d = x;", (test_batch_norm, (3, 70, False, 1e3))),
    ("common", "return y <= 0 || y >= 6;", "return y < 0 || y >= 6;", ROWS),
    ("norm", "for (int i = first_in_row(); i < m / V;", "for (int i = first_in_row(); i <= m / V;", NORM),
    ("norm", "row_start(m), i) = out;", "row_start(m), i + 1) = out;", NORM),
    ("norm", "tally.add(sum_t<T>(in.v[k]))", "tally.add(sum_t<T>(row[i * V + k + 1]))", NORM),
    ("norm", "h = g - through_mean -", "h = g -", NORM),
    ("norm", "g - through_mean - through_var * (value - m_c)", "g - through_mean", NORM),
    ("norm", "out.v[k] = T(scale * h);", "out.v[k] = T(CLIP ? h : scale * h);", CLIPPED),
    ("norm", " + sum_t<T>(other.v[k]));", ");", CLIPPED),
    ("norm", "pack<T, V>(shortcut + row_start(m), i)", "pack<T, V>(shortcut, i)", CLIPPED),
    ("norm", "blocks * width) + b * width + k", "blocks * width) + b + k", PARTS),
    ("norm", "if (threadIdx.x != 0) continue;", "", PARTS),
    ("norm", "others[row_start(count) + k - 2]", "others[row_start(count) + k - 1]", PARTS),
    ("norm", "dweight[c] = sums[0] * inv_std[c];", "dweight[c] = sums[0];", PARTS),
    ("common", "return CLIP && at_bound", "return !CLIP && at_bound", CLIPPED),
    ("rows", "b = threadIdx.x; b < blocks;", "b = threadIdx.x; b < blocks - 1;", CONVOLVED),
    ("rows", "b = threadIdx.x;", "b = threadIdx.x + 1;", PARTS),
    ("rows", "b += blockDim.x", "b += 32", PARTS),
    ("norm", "add_moments(all, {part[0], part[1], part[2]});", "all = {part[0], part[1], part[2]};", PARTS),
    ("norm", "all = moments_of_block(all);", "", PARTS),
    ("norm", "sqrt(var[c] + eps)", "sqrt(var[c])", NORM),
    ("depthwise", "if (right < 0 || q * sw != right", "if (right < 0", CONVOLVED),
    ("depthwise", "if (down < 0 || p * sh != down", "if (down < 0", CONVOLVED),
    ("depthwise", "if (column < 0 || column >= w) continue;", "if (column >= w) continue;", CONVOLVED),
    ("depthwise", "tap / kw * dh - ph, right = tap % kw", "tap % kw * dh - ph, right = tap / kw", CONVOLVED),
    ("depthwise", "sums[9] = {}, all", "sums[9], all", FRONT),
    ("depthwise", "p = first - (S == 1 ? 2 : 1)", "p = first - 1", SLID),
    ("depthwise", "if (p >= first) output", "if (p >= 0) output", SLID),
    ("depthwise", "if (j * S <= s)", "if (j < s)", SLID),
    ("depthwise", "sums[2][k] = 0;", "", SLID),
    ("depthwise", "x[s][k] = 0;", "x[s][k] = 1;", SLID),
    ("depthwise", "(first + map.ph + S - 1) / S", "(first + map.ph + S) / S", HALF),
    ("depthwise", "p * S - map.ph < end", "p * S - map.ph < end - 1", SLID),
    ("depthwise", "p >= 0 && p < map.oh", "p < map.oh", SLID),
    ("depthwise", "if (right < 0 || q * S != right", "if (right < 0", HALF),
    ("depthwise", "s + S < 3 ? x[(s + S) % 3][k]", "s + S < 3 ? x[s][k]", SLID),
    ("depthwise", "map.rows < map.oh ? first", "map.rows > map.oh ? first", SLID),
    ("depthwise", "v[k] = clip6(affine(v[k], m1, scale1, bias1));", "v[k] = affine(v[k], m1, scale1, bias1);", FRONT),
    ("depthwise", "v[k] = clip6(affine(v[k], m, scale, bias));", "v[k] = affine(v[k], m, scale, bias);", FRONT),
    ("depthwise", " - through_mean - through_var", " - through_var", FRONT),
    ("depthwise", "through_clip<true>(v[k], z[k], m2", "through_clip<false>(v[k], z[k], m2", FRONT),
    ("depthwise", "through_clip<true>(v[k], z[k], m1", "through_clip<false>(v[k], z[k], m1", FRONT),
    ("depthwise", "all[1] += g * (z[k] - m1)", "all[1] += g * z[k]", FRONT),
    ("depthwise", "factor = alike[c] ? A(1) : scale1", "factor = scale1", FRONT),
    ("depthwise", "= scale2 * sums[k];", "= sums[k];", FRONT),
    ("depthwise", "taps[k] = scale2 * weight", "taps[k] = weight", FRONT),
    ("front", "(parts[3 * i] * parts[3 * i + 1])", "parts[3 * i + 1]", MEASURED),
    ("front", "own[i / blocks]", "own[i % blocks]", MEASURED),
    ("front", "second[d * channels + c];", "second[d * channels + d];", MEASURED),
    ("front", " - mean[e] * mean[e];", ";", MEASURED),
    ("front", "= !(var[e]", "= (var[e]", MEASURED),
    ("front", "fabs(A(own[c]))", "A(own[c])", MEASURED),
    ("front", "+ eps >= least", ">= least", (test_statistics_of_an_expansion, (5, 2, 72, True, 1.0))),
    ("front", "if (few_digits[0]) {", "if (!few_digits[0]) {", MEASURED),
    ("front", "  __syncthreads();\n  if (few_digits[0])", "  if (few_digits[0])", MEASURED),
    ("front", "var[e] = all.squares / all.count;", "", MEASURED),
    ("front", "for (int c = e; c < channels; c += gridDim.y)", "for (int c = e; c < channels; c += channels)", MEASURED),
    ("front", "alike[e] ? A(0) : gamma[e] * inv_std[e] * inv_std[e]", "gamma[e] * inv_std[e] * inv_std[e]", EXPANDED),
    ("front", "alike[e] ? A(0) : gamma[e] * inv_std[e] * dbeta", "gamma[e] * inv_std[e] * dbeta", EXPANDED),
    ("front", "through_mean - through_var(e) * mean[e]", "through_mean", EXPANDED),
    ("front", "(own_mean[e] - mean[e])", "own_mean[e]", EXPANDED),
    ("front", "dweight[i] = -m *", "dweight[i] = -", EXPANDED),
    ("front", "    of_warps[warp][lane] = sum;\n    __syncthreads();", "    of_warps[warp][lane] = sum;", EXPANDED),
    ("front", "    __syncthreads();  // before the next columns are written to of_warps\n", "", EXPANDED),
    ("front", "int k = 1; k < warps; ++k", "int k = 2; k < warps; ++k", EXPANDED),
    ("front", "shift[0] += mix * mean_x[d];", "shift[0] += sum * mean_x[d];", EXPANDED),
    ("front", "T(-mix)", "T(mix)", EXPANDED),
    ("front", "T(shift[0] - most)", "T(0)", EXPANDED),
    ("front", "coarse ? A(float(bfloat16(float(x)))) : A(T(x))", "A(T(x))", EXPANDED),
    ("norm", "} else if (alike[c]) {", "} else {", EXPANDED),
    ("norm", "c < wide + channels ? pack", "c <= wide + channels ? pack", EXPANDED),
    ("norm", "T(scale * (sum_t<T>(p.v[k]) - through_mean", "T(scale * (sum_t<T>(p.v[k])", EXPANDED),
    ("dense", ": T(0);", ": in[0];", COPIED),
    ("dense", "q = right / sw;", "q = right / sw + 1;", COPIED),
    ("loss", "+ smoothing / classes", "", LOSS),
    ("loss", " - largest - log_total", " - log_total", LOSS),
    ("optimizer", "g + momentum * v : v", "g + momentum * g : v", SGD),
    ("optimizer", "(sqrt(second) * inv_root + eps)", "(sqrt(second) * inv_root)", ADAM),
    ("optimizer", "rest2 * g * g", "rest2 * g", ADAM),
    ("many", "if (c == 0) ++*rows", "++*rows", TRACK),
    ("many", "rows.var[k][c] * rows.unbiased[k] - var[c]", "rows.var[k][c] - var[c]", TRACK),
    ("many", "i < m; i += row_stride()) total", "i <= m; i += row_stride()) total", MANY),
    ("many", "T* total = rows.total[blockIdx.y];", "T* total = rows.total[0];", MANY),
    ("optimizer", "rest * g * g", "rest * g", RMS),
    ("optimizer", "spread -= first * first", "spread -= first", RMS),
    ("optimizer", "d += momentum * sum_t<T>(velocity[i]);", "", RMS),
    ("activation", "sum_t<T>(p.v[k]) + sum_t<T>(other.v[k])", "sum_t<T>(p.v[k])", ROWS),
    ("pool", "p * n + i]);", "p * n]);", POOLED),
    ("pool", "/ pixels);", "/ n);", POOLED),
    ("augment", "folded < 0 ? -folded : folded", "folded", BATCH),
    ("augment", "from_column = w - 1 - from_column", "from_column = w - from_column", BATCH),
    ("augment", "draws[picture] * gridDim.y", "draws[0] * gridDim.y", BATCH),
]  # fmt: skip


def run_everywhere(test, args):
    """A test's own function, with 64 threads in each of the thread orders."""
    for order in range(ORDERS):
        test.hypothesis.inner_test(Launcher("float32", order, 2, 64), np.random.default_rng(3), *args)


@pytest.mark.parametrize("index", range(len(FAULTS)), ids=lambda i: f"{FAULTS[i][0]}-{i}")
def test_a_planted_fault_is_noticed(index, monkeypatch):
    file, old, new, (test, args) = FAULTS[index]
    whole = cuda_launch.text
    run_everywhere(test, args)
    assert old in whole("loss" if file == "common" else file)
    monkeypatch.setattr(cuda_launch, "text", lambda source: whole(source).replace(old, new))
    with pytest.raises((AssertionError, HostKernelError)):
        run_everywhere(test, args)


def kernel(body, parameters="float* y, int n"):
    code = f"template <class T> __global__ void k({parameters}) {{ {body} }}"
    return HostModule(code, (), ("k<float>",)).get_function("k<float>")


def test_a_write_beyond_an_array_is_an_error():
    with pytest.raises(HostKernelError, match="a write beyond array 0"):
        kernel("if (threadIdx.x <= n) y[threadIdx.x] = 1;")((1,), (32,), (np.zeros(10, np.float32), np.int32(10)))


def test_what_is_read_beyond_an_array_is_nan():
    y = np.ones(10, np.float32)
    kernel("if (threadIdx.x == 0) y[0] = y[n];")((1,), (32,), (y, np.int32(10)))
    assert np.isnan(y[0]) and (y[1:] == 1).all()


@pytest.mark.parametrize("wrong", [np.int64(10), np.float64(10), np.int16(10)])
def test_a_number_of_the_wrong_width_is_an_error(wrong):
    with pytest.raises(HostKernelError, match=f"argument 1 has {wrong.itemsize} bytes, the parameter 4"):
        kernel("y[0] = n;")((1,), (1,), (np.zeros(10, np.float32), wrong))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (threadIdx.x < 40) return; __syncthreads();", "a barrier that some threads of the block never reach"),
        ("if (threadIdx.x < 7) return; __shfl_down_sync(~0u, 1, 1);", "a shuffle that some threads of the warp never"),
        (
            "if (threadIdx.x < 7) __syncthreads(); else __shfl_down_sync(~0u, 1, 1);",
            "some threads of a warp are at a bar",
        ),
    ],
)
def test_threads_that_wait_for_ever_are_an_error(body, message):
    with pytest.raises(HostKernelError, match=message):
        kernel(body)((1,), (64,), (np.zeros(10, np.float32), np.int32(10)))


def test_shared_memory_that_nobody_wrote_is_nan():
    y = np.zeros(64, np.float32)
    body = (
        "SHARED(float, s, [64]); if (threadIdx.x) s[threadIdx.x] = 1; __syncthreads(); y[threadIdx.x] = s[threadIdx.x];"
    )
    kernel(body)((2,), (64,), (y, np.int32(64)))
    assert np.isnan(y[0]) and (y[1:] == 1).all()


def test_a_compile_error_names_the_line():
    with pytest.raises(HostKernelError, match=r"kernels\.cu:1:.*nosuch"):
        kernel("nosuch(y);")
