"""Every CUDA kernel computes what the layer's file says: the source as host code, over drawn shapes and thread orders.

The plain functions of the layers' files, on NumPy, are the reference. Faults that a GPU would hide are planted and must be
noticed.
"""

import numpy as np
import pytest
from hostmodule import HostKernelError, HostModule, has_compiler
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
from scratchnet.training.augment import draw_crop_flip, normalise, random_crop_flip
from scratchnet.training.optim import adam_update, sgd_update

pytestmark = pytest.mark.skipif(not has_compiler(), reason="g++ is not installed")

ORDERS = st.integers(0, 4)  # of threads and blocks: see host.h
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

    def empty(self, *shape):
        return np.full(shape, np.nan, self.dtype)

    def sums(self, parts):
        """The second pass over parts (C, blocks, …)."""
        out = self.empty(len(parts), *parts.shape[2:])
        width = max(1, out.size // len(parts))
        self("combine_sums", (), 1, parts, out, *parts.shape[:2], width)
        return out


launchers = st.builds(Launcher, DTYPES, ORDERS, st.integers(1, 3), st.sampled_from([32, 64]))


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
    run("combine_moments", (), 1, parts, mean, var, inv_std, EPS, channels, run.blocks)
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
    run("combine_products", (), 1, parts, inv_std, dweight, dbias, channels, run.blocks)
    close(dbias, want_dbias, rtol, np.abs(dy).sum(axis=1).max())
    close(dweight, want_dweight, rtol, np.abs(dy).sum(axis=1).max() * 2)
    run("norm_gradient", (v, False), channels, dy, x, mean, inv_std, weight, bias, dweight, dbias, dx, m)
    close(dx.T, want_dx, 4 * rtol, np.abs(dy).max() * np.abs(weight * inv_std).max())


@given(launchers, rngs(), st.integers(1, 4), st.integers(2, 90), st.booleans())
def test_batch_norm_with_relu6_behind_it(run, rng, channels, m, wide):
    """The kernels with CLIP are batch norm and ReLU6; the mask of backward is that of forward, to the bit."""
    x, dy = rng.standard_normal((2, channels, m)).astype(run.dtype)
    weight, bias = rng.uniform(1, 4, channels).astype(run.dtype), rng.uniform(0, 6, channels).astype(run.dtype)
    v, rtol = word(run.dtype, m, wide), RTOL[run.dtype]
    mean, var, inv_std = statistics(run, x, v)
    y, h, parts = run.empty(channels, m), run.empty(channels, m), run.empty(channels, run.blocks, 2)
    run("normalise", (v, True), channels, x, mean, inv_std, weight, bias, y, m)
    plain, _, _, cache = batch_norm_forward(*map(np.float64, (x.T, weight, bias)), EPS)
    close(y.T, relu6_forward(plain)[0], 4 * rtol, 6)
    inside = (y > 0) & (y < 6)
    want_h, want_dweight, want_dbias = batch_norm_backward((dy * inside).T.astype(np.float64), cache)
    dweight, dbias = run.empty(2, channels)
    run("row_products", (v, True), channels, dy, x, mean, inv_std, weight, bias, parts, m)
    run("combine_products", (), 1, parts, inv_std, dweight, dbias, channels, run.blocks)
    close(dbias, want_dbias, rtol, np.abs(dy).sum(axis=1).max())
    close(dweight, want_dweight, rtol, np.abs(dy).sum(axis=1).max() * 2)
    run("norm_gradient", (v, True), channels, dy, x, mean, inv_std, weight, bias, dweight, dbias, h, m)
    close(h * (weight * inv_std)[:, None], want_h.T, 10 * rtol, np.abs(dy).max() * np.abs(weight * inv_std).max())


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


@given(launchers, rngs(), geometries(), st.sampled_from([1, 3, 33]), st.integers(1, 3), st.booleans())
def test_depthwise(run, rng, geometry, n, channels, three):
    if three:
        geometry = geometry._replace(kernel=(3, 3), padding=(2, 1), dilation=(1, 2))
        geometry = geometry._replace(size=(geometry.size[0] + 2, geometry.size[1] + 3))
    x, k = maps(rng, run, channels, geometry.size, n), 3 if geometry.kernel == (3, 3) else 0
    weight = rng.standard_normal((channels, 1, *geometry.kernel)).astype(run.dtype)
    options = geometry.stride, geometry.padding, geometry.dilation
    want_y = depthwise_forward(x.astype(np.float64), weight.astype(np.float64), *options)
    dy = rng.standard_normal(want_y.shape).astype(run.dtype)
    want_dx, want_dweight = depthwise_backward(*map(np.float64, (dy, x, weight)), *options)
    ints, rtol = sizes(x, geometry, want_y.shape), RTOL[run.dtype]

    y, again = run.empty(*want_y.shape), run.empty(*want_y.shape)
    run("depthwise_forward", (k,), channels, x, weight, y, *ints)
    close(y, want_y, rtol, 3)
    parts, (mean, var, inv_std) = run.empty(channels, run.blocks, 3), run.empty(3, channels)
    run("depthwise_moments", (k,), channels, x, weight, again, parts, *ints)
    np.testing.assert_array_equal(again, y)
    run("combine_moments", (), 1, parts, mean, var, inv_std, EPS, channels, run.blocks)
    rows = want_y.reshape(channels, -1)
    close(mean, rows.mean(axis=1), rtol, 3)
    close(var, rows.var(axis=1), rtol, 9)
    dx = run.empty(*x.shape)
    run("depthwise_input_gradient", (k,), channels, dy, weight, dx, *ints)
    close(dx, want_dx, rtol, 3)
    parts = run.empty(channels, run.blocks, *geometry.kernel)
    run("depthwise_weight_gradient", (9 if k else 1,), channels, dy, x, parts, *ints)
    close(run.sums(parts).reshape(weight.shape), want_dweight, rtol, dy[0].size)


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


@given(launchers, rngs(), st.integers(1, 80), st.sampled_from([0.1, 1.0]), st.integers(2, 9))
def test_running_statistics(run, rng, channels, momentum, count):
    running_mean, mean = rng.standard_normal((2, channels)).astype(run.dtype)
    running_var, var = rng.uniform(0.1, 2, (2, channels)).astype(run.dtype)
    counter = np.array([7])
    want = running_mean.copy(), running_var.copy(), counter.copy()
    track_statistics(*want, mean, var, momentum, count)
    numbers = momentum, count / (count - 1)
    run("track_statistics", (), 1, running_mean, running_var, counter, mean, var, *numbers, channels)
    close(running_mean, want[0], RTOL[run.dtype])
    close(running_var, want[1], RTOL[run.dtype])
    assert counter == want[2] == 8


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
NORM, CLIPPED = (test_batch_norm, (3, 70, False, 0.0)), (test_batch_norm_with_relu6_behind_it, (3, 70, False))
CONVOLVED, ROWS = (test_depthwise, (DEPTHWISE, 33, 2, True)), (test_rectifiers_and_rows, (3, 72, True))
COPIED = test_im2col_and_back, (DEPTHWISE, 33, 2)
LOSS, SGD = (test_cross_entropy, (70, 5, 0.1, False)), (test_sgd, (150, 0.9, True, 0.3))
ADAM, TRACK = (test_adam, (150, 2, 0.3)), (test_running_statistics, (70, 0.1, 3))
BATCH, POOLED = (test_take_batch, (4, 5, 7, 33)), (test_global_pooling, (2, 3, 70))

FAULTS = [  # (file, what stands there, what is put there instead, which test with which arguments sees it)
    ("common", "  __syncthreads();\n  if (threadIdx.x == 0)\n    for", "  if (threadIdx.x == 0)\n    for", NORM),
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
    ("norm", "out.v[k] = T(CLIP ? h : scale * h);", "out.v[k] = T(scale * h);", CLIPPED),
    ("norm", "return CLIP && at_bound", "return !CLIP && at_bound", CLIPPED),
    ("rows", "b < blocks; ++b) sum", "b < blocks - 1; ++b) sum", CONVOLVED),
    ("norm", "sqrt(var[c] + eps)", "sqrt(var[c])", NORM),
    ("depthwise", "if (right < 0 || q * sw != right", "if (right < 0", CONVOLVED),
    ("depthwise", "if (down < 0 || p * sh != down", "if (down < 0", CONVOLVED),
    ("depthwise", "if (column < 0 || column >= w) continue;", "if (column >= w) continue;", CONVOLVED),
    ("depthwise", "k / 3 : tap / kw, b = G == 9 ? k % 3", "k % 3 : tap / kw, b = G == 9 ? k / 3", CONVOLVED),
    ("depthwise", "sums[G] = {};", "sums[G];", CONVOLVED),
    ("dense", ": T(0);", ": in[0];", COPIED),
    ("dense", "q = right / sw;", "q = right / sw + 1;", COPIED),
    ("loss", "+ smoothing / classes", "", LOSS),
    ("loss", " - largest - log_total", " - log_total", LOSS),
    ("optimizer", "g + momentum * v : v", "g + momentum * g : v", SGD),
    ("optimizer", "(sqrt(second) * inv_root + eps)", "(sqrt(second) * inv_root)", ADAM),
    ("optimizer", "rest2 * g * g", "rest2 * g", ADAM),
    ("norm", "if (c == 0) ++*counter;", "++*counter;", TRACK),
    ("norm", "var[c] * unbiased - running_var[c]", "var[c] - running_var[c]", TRACK),
    ("activation", "sum_t<T>(p.v[k]) + sum_t<T>(other.v[k])", "sum_t<T>(p.v[k])", ROWS),
    ("pool", "p * n + i]);", "p * n]);", POOLED),
    ("pool", "/ pixels);", "/ n);", POOLED),
    ("augment", "folded < 0 ? -folded : folded", "folded", BATCH),
    ("augment", "from_column = w - 1 - from_column", "from_column = w - from_column", BATCH),
    ("augment", "draws[picture] * gridDim.y", "draws[0] * gridDim.y", BATCH),
]  # fmt: skip


def run_everywhere(test, args):
    """A test's own function, with 64 threads in each of the thread orders."""
    for order in range(4):
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
