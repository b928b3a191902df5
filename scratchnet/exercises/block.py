"""The last exercise: a whole inverted residual block."""

import numpy as np

from scratchnet import reference
from scratchnet.exercises import worked
from scratchnet.exercises.exercise import Case, Exercise, Knows, pair
from scratchnet.exercises.first import PLAIN
from scratchnet.layers.activation import relu6_backward, relu6_forward
from scratchnet.layers.conv import conv2d_backward
from scratchnet.layers.norm import batch_norm_backward, frozen_batch_norm_backward

NAMES = "w1", "gamma1", "beta1", "w2", "gamma2", "beta2", "w3", "gamma3", "beta3"


def _block_cases(rng):
    def case(label, ins, outs, stride, size=(4, 3), n=3):
        wide = 2 * ins
        shapes = (
            (wide, ins, 1, 1),
            (wide,),
            (wide,),
            (wide, 1, 3, 3),
            (wide,),
            (wide,),
            (outs, wide, 1, 1),
            (outs,),
            (outs,),
        )
        while True:
            arrays = {"x": rng.standard_normal((n, ins, *size))}
            arrays |= {name: rng.standard_normal(shape) for name, shape in zip(NAMES, shapes, strict=True)}
            for k in "123":  # gains that leave some numbers below 0, some between, some above 6
                arrays[f"gamma{k}"] = rng.uniform(1, 3, arrays[f"gamma{k}"].shape)
                arrays[f"beta{k}"] += 1.5
            if _clear_of_kinks(*arrays.values(), stride):
                return Case(label, arrays, (stride,), {"N": n})

    return [
        case(PLAIN, 2, 2, 1),
        case("stride 2 (no shortcut)", 2, 3, 2, (5, 4), 2),
        case("more channels (no shortcut)", 2, 3, 1, (3, 2)),
    ]


def _clear_of_kinks(*arguments):
    """Whether a difference's step takes no number over a kink of a ReLU6, and both have numbers on all sides."""
    _, (_, _, first, _, _, second, *_) = worked.block_forward(*arguments)  # what ReLU6 gave
    return all((y == 0).any() and (y == 6).any() for y in (first, second)) and all(
        np.abs(y[(y != kink)] - kink).min() > 1e-3 for y in (first, second) for kink in (0, 6)
    )


def _block_reference(dy, arrays, options):
    x, w1, g1, b1, w2, g2, b2, w3, g3, b3 = arrays
    (stride,) = options
    plain, deep = ((1, 1), (0, 0), (1, 1), 1), ((stride, stride), (1, 1), (1, 1), len(w2))
    z1 = reference.conv2d_forward(x, w1, None, *plain)
    n1 = reference.batch_norm_forward(z1, g1, b1, worked.EPS)[0]
    a1 = reference.relu6_forward(n1)
    z2 = reference.conv2d_forward(a1, w2, None, *deep)
    n2 = reference.batch_norm_forward(z2, g2, b2, worked.EPS)[0]
    a2 = reference.relu6_forward(n2)
    z3 = reference.conv2d_forward(a2, w3, None, *plain)
    dz3, dg3, db3 = reference.batch_norm_backward(dy, z3, g3, worked.EPS)
    da2, dw3, _ = reference.conv2d_backward(dz3, a2, w3, *plain)
    dz2, dg2, db2 = reference.batch_norm_backward(reference.relu6_backward(da2, n2), z2, g2, worked.EPS)
    da1, dw2, _ = reference.conv2d_backward(dz2, a1, w2, *deep)
    dz1, dg1, db1 = reference.batch_norm_backward(reference.relu6_backward(da1, n1), z1, g1, worked.EPS)
    dx, dw1, _ = reference.conv2d_backward(dz1, x, w1, *plain)
    return dx + dy if dx.shape == dy.shape else dx, dw1, dg1, db1, dw2, dg2, db2, dw3, dg3, db3


def _block_knows(dy, arrays, options):
    """What the block gives when one layer's backward is left out, or batch norm's is that of eval mode."""
    y, cache = worked.block_forward(*arrays, *options)
    mistakes = {
        "a batch norm is taken back as in eval mode, its mean and variance for constants.": {"norm": _frozen_norm},
        "the backward of the ReLU6 behind the depthwise convolution is left out.": {"relu2": _straight},
        "the backward of the ReLU6 behind the expansion is left out.": {"relu1": _straight},
        "the backward of both ReLU6 is left out.": {"relu1": _straight, "relu2": _straight},
        "dy went through a third ReLU6: there is none behind the projection, the bottleneck is linear.": {"last": y},
    }
    wrong = {said: _back(dy, cache, **changes) for said, changes in mistakes.items()}
    right = _back(dy, cache)
    knows = {
        name: Knows((), (), [(said, array[k]) for said, array in wrong.items()]) for k, name in enumerate(("x", *NAMES))
    }
    if cache[-1]:
        ways = ("what comes around the block, dy itself,", dy), ("what comes back through the block", right[0] - dy)
        knows["x"] = Knows(ways, (), knows["x"].wrongs, axes="NCHW")
    return knows


def _straight(dy, cache):
    return dy


def _frozen_norm(dy, cache):
    x, mean, inv_std, weight, _ = cache
    return frozen_batch_norm_backward(dy, (x, mean, inv_std, weight))


def _back(dy, cache, norm=batch_norm_backward, relu1=relu6_backward, relu2=relu6_backward, last=None):
    conv1, norm1, r1, conv2, norm2, r2, conv3, norm3, shortcut = cache
    into = dy if last is None else relu6_backward(dy, relu6_forward(last)[1])
    dz3, dg3, db3 = norm(into, norm3)
    da2, dw3, _ = conv2d_backward(dz3, conv3)
    dz2, dg2, db2 = norm(relu2(da2, r2), norm2)
    da1, dw2, _ = conv2d_backward(dz2, conv2)
    dz1, dg1, db1 = norm(relu1(da1, r1), norm1)
    dx, dw1, _ = conv2d_backward(dz1, conv1)
    return dx + into if shortcut else dx, dw1, dg1, db1, dw2, dg2, db2, dw3, dg3, db3


BLOCK = Exercise(
    name="mobilenetv2_block",
    teaches="a whole block: eight backwards in reverse, and the shortcut around them",
    chapter="10-mobilenetv2",
    problem="""
        the backward of an inverted residual block, of which MobileNetV2 is made.

            expand       1×1 convolution to more channels, batch norm, ReLU6
            filter       3×3 depthwise convolution, batch norm, ReLU6
            project      1×1 convolution back to few channels, batch norm; no ReLU6 behind it
            shortcut     x is added, where y has its shape

        You have written the backward of each of these; the library's are imported. conv2d_backward(dy, cache) returns dx,
        dweight, dbias (None here), batch_norm_backward(dy, cache) dx, dweight, dbias (gamma's and beta's), and
        relu6_backward(dy, cache) dx. Backward hands back ten gradients, in the order of forward's arguments: dx, dw1,
        dgamma1, dbeta1, dw2, dgamma2, dbeta2, dw3, dgamma3, dbeta3. `add(a, b)` adds activations.
    """,
    source="scratchnet.exercises.worked",
    given=("block_forward",),
    todo="block_backward",
    returns=("x", *NAMES),
    run=pair("block"),
    cases=_block_cases,
    reference=_block_reference,
    knows=_block_knows,
    hints=(
        "Read forward from its last line to its first. Each line that calls a forward becomes one that "
        "calls its backward with the cache that forward put aside; what comes out of one goes into the "
        "next.",
        "norm3, conv3, relu2, norm2, conv2, relu1, norm1, conv1: y = project(…) + x hands dy both to "
        "norm3 and, where there is a shortcut, to dx.",
        "It begins with dz3, dgamma3, dbeta3 = batch_norm_backward(dy, norm3), then da2, dw3, _ = "
        "conv2d_backward(dz3, conv3), then dn2 = relu6_backward(da2, relu2), and so on to dx, dw1, _ = "
        "conv2d_backward(dz1, conv1); at last dx = add(dx, dy) if shortcut.",
    ),
    solution=("scratchnet.fused.block:block_backward",),
    order=("beta3", "gamma3", "w3", "beta2", "gamma2", "w2", "beta1", "gamma1", "w1", "x"),
)
