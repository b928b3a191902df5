"""The exercises on pooling: one gradient goes to many pixels, or to one of many."""

import numpy as np

from scratchnet import reference, reference_windows
from scratchnet.exercises.exercise import Case, Exercise, Knows, pair
from scratchnet.exercises.first import PLAIN
from scratchnet.layers.max_pool import max_pool2d_forward
from scratchnet.windows import taps


def _global_cases(rng):
    def case(label, *shape):
        sizes = dict(zip("NCHW", shape, strict=True)) | {"H·W": shape[2] * shape[3]}
        return Case(label, {"x": rng.standard_normal(shape)}, (), sizes)

    return [case(PLAIN, 3, 4, 5, 7), case("a picture of one pixel", 2, 3, 1, 1), case("one picture", 1, 3, 2, 5)]


def _global_knows(dy, arrays, options):
    (x,) = arrays
    size = x.shape[2] * x.shape[3]
    spread = np.zeros(x.shape)
    spread[:, :, 0, 0] = dy[:, :, 0, 0]
    wrongs = [
        ("dy is multiplied by x: a mean has the same slope everywhere, 1/(H·W).", dy * x),
        ("all of dy goes to the first pixel, where each pixel gets a share.", spread),
        ("all of dy/(H·W) goes to the first pixel, where each pixel gets a share.", spread / size),
    ]
    return {"x": Knows(wrongs=wrongs, axes="NCHW")}


GLOBAL_AVG_POOL = Exercise(
    name="global_avg_pool",
    teaches="a mean: one gradient, shared out to all that went into it",
    chapter="06-pool",
    problem="""
        the backward of global average pooling.

            y = Σ x / (H·W)       for each picture and channel: (N, C, H, W) -> (N, C, 1, 1)

        Backward gets dy (N, C, 1, 1) and hands back dx (N, C, H, W). The cache has no numbers of x, only the shape of
        x as it lies in memory, (C, H, W, N), and its dtype. `as_maps` turns (N, C, H, W) into (C, H, W, N), `as_images`
        turns it back; `get_array_module(dy)` is NumPy here.
    """,
    source="scratchnet.layers.pool",
    given=("global_avg_pool2d_forward",),
    todo="global_avg_pool2d_backward",
    returns=("x",),
    run=pair("global_avg_pool2d"),
    cases=_global_cases,
    reference=lambda dy, arrays, options: (reference.global_avg_pool2d_backward(dy, *arrays),),
    knows=_global_knows,
    hints=(
        "y is H·W numbers of x, each divided by H·W. How much does y move when one of them does? It is "
        "the same for each.",
        "In a formula:\n[[GPOOL.2]]\nso every pixel of a channel gets the same number, and all that is left "
        "is to spread it out.",
        "Take the shape and dtype out of the cache, share = as_maps(dy) / (height * width) is (C, 1, 1, "
        "N); make an empty (C, H, W, N) array of that dtype, write share into all of it (dx[...] = share, "
        "it is repeated), and as_images(dx).",
    ),
)


def _max_cases(rng):
    def case(label, size, kernel, stride, padding=(0, 0), dilation=(1, 1), ceil_mode=False, equal=False):
        shape = (2, 3, *size)
        x = 0.04 * rng.permutation(int(np.prod(shape))).reshape(shape) - 1
        if equal:
            x = np.floor(x)  # many equal numbers
        options = kernel, stride, padding, dilation, ceil_mode
        window = float(np.prod(kernel))
        return Case(label, {"x": x}, options, {"N": 2, "the window": window}, smooth=not equal)

    return [
        case("windows that overlap", (5, 7), (3, 2), (1, 1)),
        case("windows that do not overlap", (4, 6), (2, 2), (2, 2)),
        case("stride 2", (7, 6), (3, 3), (2, 2)),
        case("padding", (5, 4), (3, 3), (2, 1), (1, 1)),
        case("dilation 2", (7, 6), (2, 3), (1, 1), dilation=(2, 2)),
        case("ceil_mode", (6, 7), (3, 2), (2, 2), ceil_mode=True),
        case("equal pixels in a window", (5, 4), (2, 2), (1, 1), equal=True),
    ]


def _max_knows(dy, arrays, options):
    """What typical mistakes give, by the same taps, on maps (C, H, W, N)."""
    (x,), (kernel, *_) = arrays, options
    _, (geometry, chosen) = max_pool2d_forward(x, *options)
    grad = dy.transpose(1, 2, 3, 0)
    everywhere, assigned, shared, alone = (np.zeros(x.transpose(1, 2, 3, 0).shape) for _ in range(4))
    for i, j, outside, inside in taps(*geometry):
        mine = chosen[outside] == i * kernel[1] + j
        everywhere[inside] += grad[outside]
        shared[inside] += grad[outside] / (kernel[0] * kernel[1])
        assigned[inside] = np.where(mine, grad[outside], 0)
        alone[inside] += mine
    swapped = np.zeros(everywhere.shape)
    for i, j, outside, inside in taps(*geometry):
        swapped[inside] += np.where(chosen[outside] == i + j * kernel[0], grad[outside], 0)
    wrongs = [
        ("each pixel of a window gets dy, where only the largest moves y: chosen says which tap that was.", everywhere),
        ("dy is shared out as by a mean, where all of it goes to the largest pixel.", shared),
        (
            "a later tap overwrites what earlier ones wrote (dx[inside] = …): a pixel can be the largest of "
            "several windows, so add (+=).",
            assigned,
        ),
        ("it is counted how often a pixel is the largest: each time it gets the dy of that window.", alone),
        ("the number of a tap is i · (width of the kernel) + j, along rows first.", swapped),
    ]
    return {"x": Knows(wrongs=[(said, array.transpose(3, 0, 1, 2)) for said, array in wrongs], axes="NCHW")}


MAX_POOL = Exercise(
    name="max_pool",
    teaches="a choice: only the largest pixel gets the gradient, from every window that chose it",
    chapter="06-pool",
    problem="""
        the backward of max pooling.

            y[p, q] = the largest of the pixels that the window at (p, q) reads

        Backward gets dy (N, C, OH, OW) and hands back dx (N, C, H, W). The cache has the geometry and `chosen`
        (C, OH, OW, N): the number of the tap, i · KW + j, whose pixel was the largest. `taps(*geometry)` goes over the
        kernel: (i, j, outside, inside) are the tap, the outputs whose tap (i, j) reads a pixel, and those pixels;
        a[outside] and b[inside] are of one shape. All arrays are maps, (C, H, W, N): as_maps(dy), and as_images(dx) at
        the end. geometry is (in_size, out_size, kernel_size, stride, padding, dilation), each a pair.
    """,
    source="scratchnet.layers.max_pool",
    given=("max_pool2d_forward",),
    todo="max_pool2d_backward",
    returns=("x",),
    run=pair("max_pool2d"),
    cases=_max_cases,
    reference=lambda dy, arrays, options: (reference_windows.max_pool2d_backward(dy, *arrays, *options[:4]),),
    knows=_max_knows,
    hints=(
        "Where x moves a little, the largest pixel stays the largest, so y is that one pixel: slope 1 for "
        "it, 0 for the others. A pixel may be the largest of several windows: then it moves several "
        "numbers of y.",
        "In a formula:\n[[MAXPOOL.3]]\nForward walks over taps; walk over the same ones, with outside and "
        "inside exchanged.",
        "For each tap: dx[inside] += xp.where(chosen[outside] == i * KW + j, grad[outside], 0), with grad "
        "= as_maps(dy), KW = geometry[2][1] and dx zeros of shape (C, *geometry[0], N) and of grad's "
        "dtype.",
    ),
)
