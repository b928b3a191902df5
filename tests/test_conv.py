"""Convolution: = reference, = PyTorch, backward = derivative, and what must hold between one convolution and another.

Every number drawn is of the order of 1, and so errors are measured: `close` is relative to the largest number, or to 1.
"""

import functools

import numpy as np
import pytest
from hypothesis import given, settings, target
from hypothesis import strategies as st
from strategies import Geometry, geometries, in_layout, layouts, normal, pairs, rngs

import scratchnet as sn
from models import MobileNetV2
from scratchnet import reference
from scratchnet.layers.blocks import block_diagonal as block_diagonal_weight
from scratchnet.layers.blocks import diagonal_blocks
from scratchnet.layers.conv import conv2d_backward, conv2d_forward

LARGE = geometries(elements=400, side=12)  # beyond 64 pixels a kernel may compute in another way


def convolve(x, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, path="grouped"):
    return conv2d_forward(x, weight, bias, stride, padding, dilation, groups, path)[0]


def gradients(dy, x, weight, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, path="grouped"):
    """dx, dweight, dbias."""
    bias = np.zeros(len(weight))
    return conv2d_backward(dy, conv2d_forward(x, weight, bias, stride, padding, dilation, groups, path)[1])


def paths(g):
    return g.layer(np.random.default_rng(0)).paths()


def close(*compared, rtol=1e-12):
    """(got, want): equal shapes, and equal values to rtol of the largest number, or of 1 where it is smaller."""
    errors = []
    for got, want in compared:
        assert got.shape == np.shape(want)
        errors.append(float(np.abs(got - want).max(initial=0) / np.abs(want).max(initial=1)))
    target(max(errors, default=0.0))
    assert max(errors, default=0.0) <= rtol, errors


# Oracles --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False], ids=["kernels", "plain"])
@given(rngs(), geometries() | LARGE, st.booleans())
def test_forward_is_the_reference(fast, rng, g, has_bias):
    sn.use_kernels(fast)
    x, weight, bias = g.arrays(rng)
    bias = bias if has_bias else None
    want = reference.conv2d_forward(x, weight, bias, *g.options)
    assert want.shape == g.y_shape
    close(*((convolve(x, weight, bias, *g.options, path), want) for path in paths(g)))


@pytest.mark.parametrize("fast", [True, False], ids=["kernels", "plain"])
@given(rngs(), geometries() | LARGE)
def test_backward_is_the_reference(fast, rng, g):
    sn.use_kernels(fast)
    x, weight, _ = g.arrays(rng)
    dy = g.dy(rng)
    want = reference.conv2d_backward(dy, x, weight, *g.options)
    close(*(both for path in paths(g) for both in zip(gradients(dy, x, weight, *g.options, path), want, strict=True)))


@given(rngs(), geometries() | LARGE, st.booleans())
def test_the_layer_is_pytorch(torch, rng, g, has_bias):
    layer, x, dy = g.layer(rng, bias=has_bias), normal(rng, g.x_shape), g.dy(rng)
    arrays = [x, *(parameter.data for parameter in layer.parameters())]
    tensors = [torch.from_numpy(array).requires_grad_() for array in arrays]
    bias = tensors[2] if has_bias else None
    y = torch.nn.functional.conv2d(*tensors[:2], bias, *g.options)
    want = torch.autograd.grad(y, tensors, torch.from_numpy(dy))
    got = [layer(x), layer.backward(dy)] + [parameter.grad for parameter in layer.parameters()]
    close(*zip(got, [y.detach().numpy(), *(gradient.numpy() for gradient in want)], strict=True))


CHECKS = [("complex-step", 1e-12, None), ("four-point", 1e-9, 8), ("finite-difference", 1e-7, 8)]


@pytest.mark.parametrize(("method", "rtol", "samples"), CHECKS)
@given(rngs(), geometries(), st.integers(0, 2), st.booleans())
def test_backward_is_the_derivative(method, rtol, samples, rng, g, choice, has_bias):
    layer = g.layer(rng, bias=has_bias)
    layer.path = layer.paths()[choice % len(layer.paths())]
    report = sn.gradcheck(layer, normal(rng, g.x_shape), method=method, rng=rng, rtol=rtol, samples=samples)
    target(report.worst)
    assert report.worst <= rtol


def for_each_path(g, x, weight, bias, dy, y, dx_dweight_dbias):
    """Every path that takes the geometry gives these values, with kernels and without."""
    compared = []
    for fast in (False, True):
        sn.use_kernels(fast)
        for path in paths(g):
            compared.append((convolve(x, weight, bias, *g.options, path), y))
            compared += zip(gradients(dy, x, weight, *g.options, path), dx_dweight_dbias, strict=True)
    close(*compared)


# One convolution and another ------------------------------------------------------------------------------------------


@given(rngs(), geometries(), st.floats(-3, 3), st.floats(-3, 3))
def test_linear_in_x_and_in_weight(rng, g, a, b):
    x, weight, _ = g.arrays(rng)
    x2, weight2, bias = g.arrays(rng)
    y, y_of_x2, y_of_weight2 = (
        convolve(*arrays, None, *g.options) for arrays in ((x, weight), (x2, weight), (x, weight2))
    )
    close(
        (convolve(a * x + b * x2, weight, None, *g.options), a * y + b * y_of_x2),
        (convolve(x, a * weight + b * weight2, None, *g.options), a * y + b * y_of_weight2),
        (convolve(x, weight, bias, *g.options), y + bias[:, None, None]),
    )


@given(rngs(), geometries())
def test_shifting_the_picture_shifts_the_output(rng, g):
    _, weight, bias = g.arrays(rng)
    (sh, sw), (ph, pw) = g.stride, g.padding
    picture = normal(rng, (*g.x_shape[:2], g.size[0] + sh, g.size[1] + sw))
    whole = convolve(picture, weight, bias, *g.options)
    shifted = convolve(picture[:, :, sh:, sw:], weight, bias, *g.options)
    top, left = -(-ph // sh), -(-pw // sw)  # the outputs before these see the padding above and to the left
    close((shifted[:, :, top:, left:], whole[:, :, top + 1 :, left + 1 :]))


@given(rngs(), geometries())
def test_permuting_pictures_permutes_y_and_dx(rng, g):
    x, weight, _ = g.arrays(rng)
    dy, order = g.dy(rng), rng.permutation(g.n)
    y, (dx, dweight, dbias) = convolve(x, weight, None, *g.options), gradients(dy, x, weight, *g.options)
    permuted = gradients(dy[order], x[order], weight, *g.options)
    close(
        (convolve(x[order], weight, None, *g.options), y[order]),
        *zip(permuted, (dx[order], dweight, dbias), strict=True),
    )


@given(rngs(), geometries())
def test_permuting_channels_permutes_y_and_gradients(rng, g):
    x, weight, bias = g.arrays(rng)
    dy = g.dy(rng)
    groups = rng.permutation(g.groups)  # whole groups change places, and the channels inside each of them
    outs = np.concatenate([group * g.outs + rng.permutation(g.outs) for group in groups])
    ins = np.concatenate([group * g.ins + np.arange(g.ins) for group in groups])
    y, (dx, dweight, dbias) = convolve(x, weight, bias, *g.options), gradients(dy, x, weight, *g.options)
    permuted = gradients(dy[:, outs], x[:, ins], weight[outs], *g.options)
    close(
        (convolve(x[:, ins], weight[outs], bias[outs], *g.options), y[:, outs]),
        *zip(permuted, (dx[:, ins], dweight[outs], dbias[outs]), strict=True),
    )


def block_diagonal(weight, groups):
    """Written without the library's: weight[o] moves to the columns of o's group."""
    outs, ins = len(weight) // groups, weight.shape[1]
    dense = np.zeros((len(weight), ins * groups, *weight.shape[2:]), weight.dtype)
    for o, row in enumerate(weight):
        dense[o, o // outs * ins : (o // outs + 1) * ins] = row
    return dense


@given(rngs(), geometries())
def test_groups_are_a_block_diagonal_weight(rng, g):
    x, weight, bias = g.arrays(rng)
    dy, dense = g.dy(rng), block_diagonal(weight, g.groups)
    one_group = (*g.options[:3], 1)
    dx, dweight, dbias = gradients(dy, x, weight, *g.options)
    dense_dx, dense_dweight, dense_dbias = gradients(dy, x, dense, *one_group)
    inside = block_diagonal(np.ones_like(weight), g.groups)
    close(
        (convolve(x, weight, bias, *g.options), convolve(x, dense, bias, *one_group)),
        (dx, dense_dx),
        (block_diagonal(dweight, g.groups), dense_dweight * inside),
        (dbias, dense_dbias),
    )
    blocks = dense_dweight[inside > 0].reshape(weight.shape)
    np.testing.assert_array_equal(block_diagonal_weight(weight, g.groups), dense)  # with exact zeros outside
    np.testing.assert_array_equal(diagonal_blocks(dense_dweight, g.groups), blocks)


@given(rngs(), geometries(), st.data())
def test_groups_do_not_see_each_other(rng, g, data):
    x, weight, bias = g.arrays(rng)
    dy, group = g.dy(rng), data.draw(st.integers(0, g.groups - 1))
    ins = np.arange(g.in_channels) // g.ins == group
    outs = np.arange(g.out_channels) // g.outs == group
    for path in paths(g):
        y, (dx, dweight, dbias) = (
            convolve(x, weight, bias, *g.options, path),
            gradients(dy, x, weight, *g.options, path),
        )
        x2, dy2 = x.copy(), dy.copy()
        x2[:, ins] += 1
        dy2[:, outs] -= 1
        y2, (dx2, dweight2, dbias2) = (
            convolve(x2, weight, bias, *g.options, path),
            gradients(dy2, x2, weight, *g.options, path),
        )
        np.testing.assert_array_equal(y2[:, ~outs], y[:, ~outs])
        np.testing.assert_array_equal(dx2[:, ~ins], dx[:, ~ins])
        np.testing.assert_array_equal(dweight2[~outs], dweight[~outs])
        np.testing.assert_array_equal(dbias2[~outs], dbias[~outs])


@given(rngs(), geometries(ins=1, outs=1))
def test_as_many_groups_as_channels_is_a_convolution_for_each_channel(rng, g):
    x, weight, bias = g.arrays(rng)
    dy, alone = g.dy(rng), (*g.options[:3], 1)
    channels = [slice(c, c + 1) for c in range(g.groups)]
    want_y = [convolve(x[:, c], weight[c], bias[c], *alone) for c in channels]
    want = [gradients(dy[:, c], x[:, c], weight[c], *alone) for c in channels]
    want_dx, want_dweight, want_dbias = zip(*want, strict=True)
    joined = np.concatenate(want_dx, axis=1), np.concatenate(want_dweight), np.concatenate(want_dbias)
    for_each_path(g, x, weight, bias, dy, np.concatenate(want_y, axis=1), joined)


@given(rngs(), geometries() | LARGE)
def test_stride_is_stride_1_with_outputs_left_out(rng, g):
    x, weight, bias = g.arrays(rng)
    stride_1 = (1, 1), *g.options[1:]
    everywhere = convolve(x, weight, bias, *stride_1)
    kept = (slice(None), slice(None), slice(None, None, g.stride[0]), slice(None, None, g.stride[1]))
    dy, dy_everywhere = g.dy(rng), np.zeros(everywhere.shape)
    dy_everywhere[kept] = dy
    want = gradients(dy_everywhere, x, weight, *stride_1)
    for_each_path(g, x, weight, bias, dy, everywhere[kept], want)


@given(rngs(), geometries() | LARGE)
def test_dilation_is_a_kernel_with_zeros_between(rng, g):
    x, weight, bias = g.arrays(rng)
    dy = g.dy(rng)
    size = [d * (k - 1) + 1 for d, k in zip(g.dilation, g.kernel, strict=True)]
    between = np.zeros((*weight.shape[:2], *size))
    tapped = (slice(None), slice(None), slice(None, None, g.dilation[0]), slice(None, None, g.dilation[1]))
    between[tapped] = weight
    undilated = *g.options[:2], (1, 1), g.groups
    want_dx, want_dweight, want_dbias = gradients(dy, x, between, *undilated)
    want_y = convolve(x, between, bias, *undilated)
    for_each_path(g, x, weight, bias, dy, want_y, (want_dx, want_dweight[tapped], want_dbias))


@given(rngs(), geometries() | LARGE)
def test_padding_is_zeros_around_x(rng, g):
    x, weight, bias = g.arrays(rng)
    (ph, pw), dy = g.padding, g.dy(rng)
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    unpadded = g.stride, (0, 0), g.dilation, g.groups
    want_y = convolve(padded, weight, bias, *unpadded)
    want_dx, want_dweight, want_dbias = gradients(dy, padded, weight, *unpadded)
    inner = want_dx[:, :, ph : ph + g.size[0], pw : pw + g.size[1]]
    for_each_path(g, x, weight, bias, dy, want_y, (inner, want_dweight, want_dbias))


@given(rngs(), geometries(kernel=(1, 1), padding=(0, 0), groups=1))
def test_one_by_one_is_a_matrix_product(rng, g):
    x, weight, bias = g.arrays(rng)
    dy, matrix = g.dy(rng), weight[:, :, 0, 0]
    seen = x[:, :, :: g.stride[0], :: g.stride[1]]
    want_dx = np.zeros_like(x)
    want_dx[:, :, :: g.stride[0], :: g.stride[1]] = np.einsum("oc,nohw->nchw", matrix, dy)
    want_y = np.einsum("oc,nchw->nohw", matrix, seen) + bias[:, None, None]
    want_dweight = np.einsum("nohw,nchw->oc", dy, seen)[:, :, None, None]
    for_each_path(g, x, weight, bias, dy, want_y, (want_dx, want_dweight, dy.sum(axis=(0, 2, 3))))


@given(rngs(), geometries() | LARGE)
def test_dx_is_the_transposed_convolution_of_pytorch(torch, rng, g):
    x, weight, _ = g.arrays(rng)
    dy = g.dy(rng)
    # What a stride leaves over is below the stride, as conv_transpose2d wants it.
    sides = zip(g.size, g.padding, g.dilation, g.kernel, g.stride, strict=True)
    left_over = [(size + 2 * p - d * (k - 1) - 1) % s for size, p, d, k, s in sides]
    want = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(dy), torch.from_numpy(weight), None, g.stride, g.padding, left_over, g.groups, g.dilation
    )
    close(*((gradients(dy, x, weight, *g.options, path)[0], want.numpy()) for path in paths(g)))


@given(rngs(), geometries(groups=1))
def test_dx_is_a_convolution_of_dy_with_the_kernel_turned_round(rng, g):
    x, weight, _ = g.arrays(rng)
    dy = g.dy(rng)
    sides = zip(g.size, g.padding, g.dilation, g.kernel, strict=True)
    stretched = np.zeros((g.n, g.out_channels, *(size + 2 * p - d * (k - 1) for size, p, d, k in sides)))
    stretched[:, :, :: g.stride[0], :: g.stride[1]] = dy  # zeros where a stride of 1 would have put outputs
    turned = weight[:, :, ::-1, ::-1].swapaxes(0, 1)
    around = tuple(d * (k - 1) for d, k in zip(g.dilation, g.kernel, strict=True))
    of_padded = convolve(stretched, turned, None, (1, 1), around, g.dilation)
    (ph, pw), (height, width) = g.padding, g.size
    close((gradients(dy, x, weight, *g.options)[0], of_padded[:, :, ph : ph + height, pw : pw + width]))


@pytest.mark.parametrize("fast", [True, False], ids=["kernels", "plain"])
@given(rngs(), geometries() | LARGE, layouts())
def test_every_path_gives_the_same_values_in_every_layout(fast, rng, g, layout):
    sn.use_kernels(fast)
    layer, x, dy = g.layer(rng), in_layout(normal(rng, g.x_shape), layout), in_layout(g.dy(rng), layout)
    results = []
    for path in reversed(layer.paths()):
        layer.path = path
        layer.zero_grad()
        results.append([layer(x), layer.backward(dy), layer.weight.grad.copy(), layer.bias.grad.copy()])
    close(*(both for result in results[1:] for both in zip(result, results[0], strict=True)))


def test_paths_are_those_that_the_geometry_allows():
    for args, options, want in (
        ((4, 3, 1), {"stride": 2}, ["pointwise", "dense", "grouped"]),
        ((4, 3, 1), {"padding": 1}, ["dense", "grouped"]),
        ((4, 4, 1), {"groups": 2}, ["grouped", "dense"]),
        ((4, 4, 1), {"groups": 4}, ["depthwise", "grouped", "dense"]),
        ((4, 8, (1, 2)), {"groups": 4}, ["depthwise", "grouped", "dense"]),
        ((1, 3, (1, 2)), {}, ["dense", "grouped"]),
    ):
        layer = sn.Conv2d(*args, **options)
        assert layer.paths() == want and layer.path == want[0]
        for path in want:
            layer.path = path
            assert layer.path == path


def test_new_weights_have_the_variance_that_keeps_gradients():
    for groups, fan_out in ((1, 600 * 9), (30, 20 * 9)):
        layer = sn.Conv2d(300, 600, 3, groups=groups, rng=np.random.default_rng(0))
        assert layer.weight.data.dtype == np.float32 and not layer.bias.data.any()
        np.testing.assert_allclose(layer.weight.data.var(), 2 / fan_out, rtol=0.02)
        np.testing.assert_allclose(layer.weight.data.mean(), 0, atol=3 * (2 / fan_out / layer.weight.data.size) ** 0.5)


def test_the_generator_decides_the_weights_whatever_the_dtype():
    first, second = (sn.Conv2d(4, 6, 3, dtype=d, rng=np.random.default_rng(9)).weight.data for d in ("f4", "f8"))
    np.testing.assert_array_equal(first, second.astype(np.float32))
    assert not np.array_equal(sn.Conv2d(4, 6, 3).weight.data, sn.Conv2d(4, 6, 3).weight.data)


# Messages -------------------------------------------------------------------------------------------------------------

CONV = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"groups": 3}, r"^Conv2d: in_channels must be a positive multiple of groups, got 4 and groups 3$"),
        ({"groups": 4}, r"^Conv2d: out_channels must be a positive multiple of groups, got 6 and groups 4$"),
        ({"groups": 0}, r"^Conv2d: in_channels must be a positive multiple of groups, got 4 and groups 0$"),
        ({"groups": 2.0}, r"^Conv2d: in_channels must be a positive multiple of groups, got 4 and groups 2\.0$"),
        ({"in_channels": 0}, r"^Conv2d: in_channels must be a positive multiple of groups, got 0 and groups 1$"),
        ({"out_channels": -6}, r"^Conv2d: out_channels must be a positive multiple of groups, got -6 and groups 1$"),
        ({"kernel_size": 0}, r"^Conv2d: kernel_size must be an int of at least 1 or a pair of them, got 0$"),
        ({"kernel_size": (3, 3, 3)}, r"^Conv2d: kernel_size must be an int .* got \(3, 3, 3\)$"),
        ({"kernel_size": 2.5}, r"^Conv2d: kernel_size must be an int .* got 2\.5$"),
        ({"kernel_size": "3"}, r"^Conv2d: kernel_size must be an int .* got '3'$"),
        ({"stride": 0}, r"^Conv2d: stride must be an int of at least 1 or a pair of them, got 0$"),
        ({"stride": (1, -2)}, r"^Conv2d: stride must be an int .* got \(1, -2\)$"),
        ({"stride": True}, r"^Conv2d: stride must be an int .* got True$"),
        ({"stride": None}, r"^Conv2d: stride must be an int .* got None$"),
        ({"padding": -1}, r"^Conv2d: padding must be an int of at least 0 or a pair of them, got -1$"),
        ({"padding": "full"}, r"^Conv2d: padding must be an int .* got 'full'$"),
        ({"padding": (1, 0.5)}, r"^Conv2d: padding must be an int .* got \(1, 0\.5\)$"),
        ({"dilation": 0}, r"^Conv2d: dilation must be an int of at least 1 or a pair of them, got 0$"),
    ],
)
def test_options_that_no_convolution_has(wrong, message):
    with pytest.raises(ValueError, match=message):
        sn.Conv2d(**CONV | wrong)


@given(st.data(), pairs(2, 5), pairs(1, 3), pairs(1, 3), st.integers(0, 1))
def test_a_kernel_larger_than_the_padded_input(data, kernel, stride, dilation, axis):
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = data.draw(st.tuples(*(st.integers(0, (each - 1) // 2) for each in reach)))
    layer = sn.Conv2d(1, 1, kernel, stride, padding, dilation)
    size = [20, 20]
    size[axis] = reach[axis] - 2 * padding[axis]  # one pixel short
    message = (
        rf"^Conv2d: the kernel spans {reach[axis] + 1} pixels along {'HW'[axis]}, "
        rf"more than the padded input's {reach[axis]} \(x of shape \(2, 1, "
    )
    with pytest.raises(ValueError, match=message):
        layer(np.ones((2, 1, *size), np.float32))
    size[axis] += 1
    assert layer(np.ones((2, 1, *size), np.float32)).shape[2 + axis] == 1


ONES = functools.partial(np.ones, dtype="f4")


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            ONES((2, 3, 9, 9)),
            ValueError,
            r"^Conv2d: expected 4 input channels, got x of shape \(2, 3, 9, 9\)$",
        ),
        (
            ONES((4, 9, 9)),
            ValueError,
            r"^Conv2d: expected x of shape \(N, 4, H, W\), got x of shape \(4, 9, 9\)$",
        ),
        (
            np.ones((2, 4, 9, 9), int),
            TypeError,
            r"^Conv2d: expected floating-point x, got int64: .*x\.astype\('float32'\)$",
        ),
        (np.ones((2, 4, 9, 9), "f8"), TypeError, r"^Conv2d: x is float64 and the parameters are float32: .*astype"),
        (np.ones((2, 4, 9, 9), "f2"), TypeError, r"^Conv2d: x is float16 and the parameters are float32: .*astype"),
        ([[[[1.0]]]], TypeError, r"^Conv2d: expected a NumPy or CuPy array \(N, 4, H, W\), got list$"),
        (None, TypeError, r"^Conv2d: expected a NumPy or CuPy array \(N, 4, H, W\), got NoneType$"),
        (
            ONES((0, 4, 9, 9)),
            ValueError,
            r"^Conv2d: x of shape \(0, 4, 9, 9\) is empty, expected at least one",
        ),
        (
            ONES((2, 4, 9, 0)),
            ValueError,
            r"^Conv2d: x of shape \(2, 4, 9, 0\) is empty, expected at least one",
        ),
    ],
)
def test_inputs_that_do_not_fit(x, error, message):
    with pytest.raises(error, match=message):
        sn.Conv2d(**CONV)(x)
    with pytest.raises(error, match=r"^features\.0 " + message[1:]):
        sn.Sequential({"features": sn.Sequential(sn.Conv2d(**CONV))})(x)


@pytest.mark.parametrize(
    ("dy", "error", "message"),
    [
        (
            ONES((2, 6, 7, 6)),
            ValueError,
            r"^Conv2d: expected dy of shape \(2, 6, 7, 7\), .* got \(2, 6, 7, 6\)$",
        ),
        (np.ones((2, 6, 7, 7), "f8"), TypeError, r"^Conv2d: expected dy of dtype float32, .* got float64$"),
        (1.0, TypeError, r"^Conv2d: expected dy to be an array of shape \(2, 6, 7, 7\), got float$"),
    ],
)
def test_upstream_gradients_that_do_not_fit(dy, error, message):
    layer = sn.Conv2d(**CONV)
    layer(ONES((2, 4, 9, 9)))
    with pytest.raises(error, match=message):
        layer.backward(dy)
    layer.backward(ONES((2, 6, 7, 7)))  # the cache is still there


def test_a_message_from_inside_a_network_says_where():
    network = MobileNetV2(10, 0.25, "cifar", rng=np.random.default_rng(0))
    convolution = network.features[4].conv[0][0]
    convolution.in_channels += 1
    message = r"^features\.4\.conv\.0\.0 Conv2d: expected 9 input channels, got x of shape \(2, 8, 16, 16\)$"
    with pytest.raises(ValueError, match=message):
        network(ONES((2, 3, 16, 16)))


@pytest.mark.parametrize(
    ("options", "path", "allowed"),
    [
        ({}, "depthwise", "dense, grouped"),
        ({}, "pointwise", "dense, grouped"),
        ({"groups": 2}, "pointwise", "grouped, dense"),
        ({"kernel_size": 1, "padding": 1}, "pointwise", "dense, grouped"),
        ({"kernel_size": 1}, "depthwise", "pointwise, dense, grouped"),
        ({"groups": 4, "out_channels": 8}, "fast", "depthwise, grouped, dense"),
    ],
)
def test_a_path_that_does_not_fit(options, path, allowed):
    layer = sn.Conv2d(**CONV | options)
    before = layer.path
    message = rf"^Conv2d: path '{path}' does not fit this geometry, which allows {allowed}$"
    with pytest.raises(ValueError, match=message):
        layer.path = path
    assert layer.path == before


def test_the_strategy_draws_every_kind_of_geometry():
    """What the properties above are worth depends on what they see."""
    seen: set[str] = set()

    @given(geometries())
    def look(g: Geometry):
        sides = list(zip(g.size, g.kernel, g.stride, g.padding, g.dilation, strict=True))
        seen.update(
            name
            for name, holds in {
                "remainder": any((s + 2 * p - d * (k - 1) - 1) % t for s, k, t, p, d in sides),
                "even kernel": any(k % 2 == 0 for k in g.kernel),
                "dilation": any(d > 1 < k for _, k, _, _, d in sides),
                "padding beyond half": any(p > k / 2 for _, k, _, p, _ in sides),
                "a tap that reads only padding": any(p >= s + d * (k - 1) for s, k, _, p, d in sides),
                "different sides": all(h != w for h, w in (g.size, g.kernel, g.stride, g.padding)),
                "all sizes different": len({*g.x_shape, g.out_channels}) == 5,
                "1×1": g.kernel == (1, 1) and g.padding == (0, 0) and g.groups == 1,
                "depthwise": g.groups == g.in_channels == g.out_channels > 1,
                "several filters a channel": g.groups == g.in_channels > 1 < g.outs,
                "grouped": g.groups > 1 < g.ins and g.outs > 1,
            }.items()
            if holds
        )

    settings(max_examples=200, derandomize=True, database=None)(look)()
    assert len(seen) == 11, seen


def test_two_channels_in_two_groups_are_depthwise_and_a_bias_does_not_decay():
    assert sn.Conv2d(2, 2, 3, groups=2).path == "depthwise"
    layer = sn.Conv2d(3, 2, 1)
    assert layer.weight.decay is True and layer.bias.decay is False


def test_without_a_bias_there_is_no_gradient_of_one():
    x, weight = np.ones((2, 3, 5, 4)), np.ones((6, 3, 1, 1))
    y, cache = conv2d_forward(x, weight, None, (1, 1), (0, 0), (1, 1), 1, "pointwise")
    assert conv2d_backward(y, cache)[2] is None
