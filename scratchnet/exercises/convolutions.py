"""The exercises on convolution: a product again, then taps that overlap, then one filter a channel."""

import numpy as np

from scratchnet import reference
from scratchnet.exercises.exercise import Case, Exercise, Knows, path
from scratchnet.windows import output_size, taps

MAPS = "CHWN"
ONE = 1, 1


def _maps(x):
    return x.transpose(3, 0, 1, 2)  # (C, H, W, N) -> (N, C, H, W)


def _reference(dy, arrays, options):
    x, weight = arrays
    dx, dweight, _ = reference.conv2d_backward(_maps(dy), _maps(x), weight, *options)
    return dx.transpose(1, 2, 3, 0), dweight


def _case(rng, label, x_shape, weight_shape, options, window=None):
    """x (C, H, W, N) and a weight; `window`: (stride, padding, dilation), by which sizes of y are known."""
    arrays = {"x": rng.standard_normal(x_shape), "weight": rng.standard_normal(weight_shape)}
    size = [output_size(*each) for each in zip(x_shape[1:3], weight_shape[2:], *window, strict=True)]
    sizes = {"N": x_shape[3], "O": weight_shape[0], "M": size[0] * size[1] * x_shape[3]}
    return Case(label, arrays, options, sizes)


def _pointwise_cases(rng):
    def case(label, channels, stride, outs):
        shapes = (channels, 5, 4, 3), (outs, channels, 1, 1)
        return _case(rng, label, *shapes, (stride,), (stride, (0, 0), ONE))

    return [
        case("stride 1", 4, ONE, 7),
        case("as many outputs as inputs", 4, ONE, 4),
        case("stride 2", 3, (2, 2), 5),
        case("strides of 1 and 3", 2, (1, 3), 3),
    ]


def _pointwise_knows(dy, arrays, options):
    (x, weight), (stride,) = arrays, options
    matrix, grad = weight[:, :, 0, 0], dy.reshape(len(dy), -1)
    wrongs = []
    if matrix.shape[0] == matrix.shape[1] and stride == ONE:
        wrongs.append(("W is multiplied where Wᵀ belongs.", (matrix @ grad).reshape(x.shape)))
    if stride != ONE:
        dseen = (matrix.T @ grad).reshape(-1, *dy.shape[1:])
        corner = np.zeros(x.shape)
        corner[:, : dseen.shape[1], : dseen.shape[2]] = dseen
        filled = np.repeat(np.repeat(dseen, stride[0], axis=1), stride[1], axis=2)[:, : x.shape[1], : x.shape[2]]
        wrongs += [
            (
                "with a stride the gradients stand side by side in a corner: they belong to every s-th pixel, "
                "which was read.",
                corner,
            ),
            ("with a stride the gradients are repeated over the pixels that were not read: those get 0.", filled),
        ]
    return {"x": Knows(wrongs=wrongs, axes=MAPS), "weight": Knows(axes=("O", "C", "KH", "KW"))}


POINTWISE = Exercise(
    name="pointwise",
    teaches="a 1×1 convolution is a product, and a stride leaves pixels out that then get 0",
    chapter="07-convolution",
    problem="""
        the backward of a 1×1 convolution.

            Y = W · X        X (C × M): one row a channel, M = OH·OW·N the pixels of all pictures; W (O × C)

        With a stride s only every s-th pixel is read. All arrays are maps as they lie in memory, (C, H, W, N): x
        (C, H, W, N), weight (O, C, 1, 1), dy (O, OH, OW, N). Backward hands back dx like x and dweight like weight, or
        None for dweight where `wants_dweight` is False (you may leave that alone).
    """,
    source="scratchnet.layers.conv",
    given=("pointwise_forward",),
    todo="pointwise_backward",
    returns=("x", "weight"),
    run=path("pointwise"),
    cases=_pointwise_cases,
    reference=lambda dy, arrays, options: _reference(dy, arrays, (*options, (0, 0), ONE, 1)),
    knows=_pointwise_knows,
    hints=(
        "Seen as matrices it is the first exercise without a bias: reshape dy to (O, M) and what forward "
        "has read to (C, M), then dW and dX are two products. A pixel that no output reads does not move "
        "the loss.",
        "In formulas:\n[[CONV.5]]\n[[CONV.6]]\nwith cols the pixels that are read, seen = x[:, ::s, ::s].",
        "dseen = (weight[:, :, 0, 0].T @ grad).reshape(seen.shape), then dx = zeros like x with dx[:, "
        "::s, ::s] = dseen (one stride for H, one for W); dweight = (grad @ seen.reshape(len(x), "
        "-1).T)[:, :, None, None].",
    ),
)


def _conv_cases(rng):
    def case(label, channels, size, outs, kernel, stride=ONE, padding=(0, 0), dilation=ONE, groups=1):
        shapes = (channels, *size, 2), (outs, channels // groups, *kernel)
        return _case(rng, label, *shapes, (stride, padding, dilation, groups), (stride, padding, dilation))

    return [
        case("stride 1 without padding", 3, (5, 4), 5, (3, 2)),
        case("padding 1", 2, (3, 4), 3, (3, 3), padding=ONE),
        case("stride 2", 2, (6, 5), 3, (3, 2), stride=(2, 2)),
        case("uneven strides and padding", 2, (4, 5), 3, (2, 3), (1, 2), (1, 2)),
        case("dilation 2", 2, (6, 5), 3, (2, 2), dilation=(2, 2)),
        case("2 groups", 4, (4, 3), 6, (2, 3), padding=(0, 1), groups=2),
    ]


def _conv_knows(dy, arrays, options):
    (x, weight), (stride, padding, dilation, groups) = arrays, options
    matrix = weight.reshape(groups, len(weight) // groups, -1)
    dcols = (matrix.swapaxes(1, 2) @ dy.reshape(groups, len(weight) // groups, -1)).reshape(
        len(x), *weight.shape[2:], *dy.shape[1:]
    )
    flipped = (
        weight[:, :, ::-1, ::-1].reshape(matrix.shape).swapaxes(1, 2) @ dy.reshape(*matrix.shape[:2], -1)
    ).reshape(dcols.shape)
    assigned, turned = np.zeros(x.shape), np.zeros(x.shape)
    for i, j, outside, inside in taps(x.shape[1:3], dy.shape[1:3], weight.shape[2:], stride, padding, dilation):
        assigned[inside] = dcols[:, i, j][outside]
        turned[inside] += flipped[:, i, j][outside]
    wrongs = [
        (
            "a later tap overwrites what earlier ones wrote: a pixel is read by several outputs, so its "
            "gradients add (+=).",
            assigned,
        ),
        ("the kernel is flipped once too often: tap (i, j) sends back by the very weight that it read with.", turned),
    ]
    return {"x": Knows(wrongs=wrongs, axes=MAPS), "weight": Knows(axes=("O", "C", "KH", "KW"))}


CONV2D = Exercise(
    name="conv2d",
    teaches="any convolution: pixels copied out, a product, and copies added back",
    chapter="07-convolution",
    problem="""
        the backward of a convolution, dense or in groups.

            cols = the pixels that each tap reads at every output      (C, KH, KW, OH, OW, N), by im2col
            Y = W · cols                                               W as a matrix (O × C·KH·KW)

        With groups there is one such product for each: matrices are (G, O/G, K) and (G, K, M), and @ multiplies group by
        group. All arrays are maps as they lie in memory: x (C, H, W, N), weight (O, C/groups, KH, KW), dy (O, OH, OW, N).
        Backward hands back dx like x and dweight like weight, or None for dweight where `wants_dweight` is False (you may
        leave that alone). `add_col2im(dcols, dx, stride, padding, dilation)` adds dcols (C, KH, KW, OH, OW, N) to the
        pixels of dx (C, H, W, N) that im2col copied them from; with `taps` you can write it yourself:

            for i, j, outside, inside in taps(x.shape[1:3], out_size, weight.shape[2:], stride, padding, dilation):
                cols[:, i, j][outside] = x[inside]      # this is im2col
    """,
    source="scratchnet.layers.conv",
    given=("grouped_forward", "im2col"),
    todo="grouped_backward",
    returns=("x", "weight"),
    run=path("grouped"),
    cases=_conv_cases,
    reference=lambda dy, arrays, options: _reference(dy, arrays, options),
    knows=_conv_knows,
    hints=(
        "Two steps forward, so two steps back, the last one first. The product you know: it gives "
        "dweight, and dcols. A copy sends its gradient to where it came from, and a pixel that was copied "
        "nine times gets nine gradients, added.",
        "In formulas:\n[[CONV.5]]\n[[CONV.6]]\n[[CONV.7]]",
        "matrix and grad as forward shapes them, (G, O/G, K) and (G, O/G, M); dmatrix = grad @ "
        "cols.swapaxes(1, 2), with cols (G, K, M) made again by im2col; dcols = matrix.swapaxes(1, 2) @ "
        "grad, reshaped to (C, KH, KW, OH, OW, N), goes to zeros like x by add_col2im.",
    ),
    solution=("scratchnet.windows:add_col2im",),
    tools=("scratchnet.windows:taps",),
)


def _depthwise_cases(rng):
    def case(label, channels, size, outs, kernel, stride=ONE, padding=(0, 0), dilation=ONE):
        shapes = (channels, *size, 2), (outs, 1, *kernel)
        return _case(rng, label, *shapes, (stride, padding, dilation), (stride, padding, dilation))

    return [
        case("stride 1 without padding", 3, (5, 4), 3, (3, 2)),
        case("padding 1", 2, (3, 4), 2, (3, 3), padding=ONE),
        case("stride 2 with padding 1", 2, (6, 5), 2, (3, 3), (2, 2), ONE),
        case("dilation 2", 2, (6, 5), 2, (2, 2), dilation=(2, 2)),
        case("two filters a channel", 3, (4, 3), 6, (2, 2)),
    ]


def _depthwise_knows(dy, arrays, options):
    (x, weight), (stride, padding, dilation) = arrays, options
    filters = weight.reshape(len(x), -1, *weight.shape[2:], 1, 1, 1)
    grad = dy.reshape(len(x), -1, *dy.shape[1:])
    assigned, turned, first = np.zeros(x.shape), np.zeros(x.shape), np.zeros(x.shape)
    for i, j, outside, inside in taps(x.shape[1:3], dy.shape[1:3], weight.shape[2:], stride, padding, dilation):
        seen = grad[:, :, outside[1], outside[2]]
        assigned[inside] = (filters[:, :, i, j] * seen).sum(axis=1)
        turned[inside] += (filters[:, :, -1 - i, -1 - j] * seen).sum(axis=1)
        first[inside] += filters[:, 0, i, j] * seen[:, 0]
    wrongs = [
        (
            "a later tap overwrites what earlier ones wrote: a pixel is read by several outputs, so its "
            "gradients add (+=).",
            assigned,
        ),
        ("the kernel is flipped once too often: tap (i, j) sends back by the very weight that it read with.", turned),
        ("only the first filter of a channel sends something back: what comes back through all of them adds.", first),
    ]
    return {"x": Knows(wrongs=wrongs, axes=MAPS), "weight": Knows(axes=("O", "1", "KH", "KW"))}


DEPTHWISE = Exercise(
    name="depthwise",
    teaches="one filter a channel: forward's line, read with its two sides exchanged",
    chapter="07-convolution",
    problem="""
        the backward of a depthwise convolution.

            y[outside] += weight[i, j] · x[inside]      tap by tap, each channel with filters of its own

        `taps(in_size, out_size, kernel, stride, padding, dilation)` yields (i, j, outside, inside): the tap, the outputs
        whose tap (i, j) reads a pixel and not the padding, and those pixels, of one shape. All arrays are maps as they
        lie in memory: x (C, H, W, N), weight (O, 1, KH, KW), dy (O, OH, OW, N). Mostly O = C; there may be O/C filters a
        channel, whose outputs then lie side by side. Backward hands back dx like x and dweight like weight, or None for
        dweight where `wants_dweight` is False (you may leave that alone).
    """,
    source="scratchnet.layers.conv",
    given=("depthwise_forward",),
    todo="depthwise_backward",
    returns=("x", "weight"),
    run=path("depthwise"),
    cases=_depthwise_cases,
    reference=lambda dy, arrays, options: _reference(dy, arrays, (*options, len(arrays[0]))),
    knows=_depthwise_knows,
    hints=(
        "Take forward's one line for one tap: y += weight · x. From it follow two lines: what x gets, and "
        "what the weight gets. The weight of a tap is one number a channel, used at every pixel of every "
        "picture.",
        "In formulas:\n[[CONV.9]]\n[[CONV.10]]",
        "With O = C: grad = dy[outside], dx[inside] += weight[:, 0, i, j, None, None, None] * grad, and "
        "dweight[:, 0, i, j] = (grad * x[inside]).sum(axis=(1, 2, 3)). With O/C filters a channel reshape dy to "
        "(C, O/C, OH, OW, N) and sum what comes back to x over the second axis.",
    ),
)
