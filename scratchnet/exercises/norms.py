"""The exercise on batch norm: x reaches y in three ways."""

import numpy as np

from scratchnet import reference
from scratchnet.array import as_images, as_matrix
from scratchnet.exercises.exercise import Case, Exercise, Knows, pair
from scratchnet.exercises.first import PLAIN

EPS = 0.01


def _cases(rng):
    def case(label, n, c, h, w, shift=0.0, eps=EPS):
        arrays = {"x": rng.standard_normal((n, c, h, w)) + shift}
        arrays |= {"weight": rng.uniform(0.5, 2, c) * rng.choice([-1, 1], c), "bias": rng.standard_normal(c)}
        return Case(label, arrays, (eps,), {"N": n, "C": c, "M": n * h * w, "H·W": h * w})

    return [
        case(PLAIN, 3, 4, 5, 2),
        case("a mean far from 0", 2, 3, 4, 3, shift=5.0),
        case("one picture", 1, 3, 2, 5),
        case("an eps as large as the variance", 3, 2, 2, 4, eps=1.0),
    ]


def _knows(dy, arrays, options):
    (x, weight, _), (eps,) = arrays, options
    rows, grad = as_matrix(x), as_matrix(dy)
    m = rows.shape[1]
    mean = rows.mean(axis=1, keepdims=True)
    var = ((rows - mean) ** 2).mean(axis=1, keepdims=True)
    s, centred = (var + eps) ** -0.5, rows - mean
    xhat, gain = centred * s, weight[:, None] * s
    dbias, dweight = grad.sum(axis=1, keepdims=True), (grad * xhat).sum(axis=1, keepdims=True)

    def image(matrix):
        return np.ascontiguousarray(as_images(np.broadcast_to(matrix, rows.shape), x))

    terms = [
        ("the way of x by itself, weight · s · dy,", image(gain * grad)),
        ("the way through the mean, -weight · s · Σdy / M,", image(-gain * dbias / m)),
        ("the way through the variance, -weight · s · x̂ · Σ(dy · x̂) / M,", image(-gain * xhat * dweight / m)),
    ]
    wrongs = [
        (
            "mean and variance are taken for constants: that is eval mode. In training every x moves both, "
            "and with them all y.",
            terms[0][1],
        ),
        (
            "in the way through the variance x - mean stands where x̂ belongs.",
            image(gain * (grad - dbias / m - centred * dweight / m)),
        ),
        (
            "in the way through the variance Σ(dy · x) stands where Σ(dy · x̂) belongs.",
            image(gain * (grad - dbias / m - xhat * (grad * rows).sum(axis=1, keepdims=True) / m)),
        ),
    ]
    per_channel = [("s = 1/√(v + eps)", image(s)), ("weight", image(weight[:, None]))]
    of_weight = [
        ("x is summed where x̂ belongs: weight multiplies the normalised x.", (grad * rows).sum(axis=1)),
        ("x - mean is summed where x̂ belongs: s is missing.", (grad * centred).sum(axis=1)),
        ("dy is summed, and not dy · x̂: that is dbias.", dbias[:, 0]),
        ("dy · y is summed where dy · x̂ belongs.", (grad * (gain * centred)).sum(axis=1)),
    ]
    of_bias = [("dy · x̂ is summed, and not dy: that is dweight.", dweight[:, 0])]
    scale = [("weight", weight), ("s = 1/√(v + eps)", s[:, 0])]
    return {
        "x": Knows(terms, per_channel, wrongs, axes="NCHW"),
        "weight": Knows((), scale, of_weight),
        "bias": Knows((), scale, of_bias),
    }


BATCH_NORM = Exercise(
    name="batch_norm",
    teaches="one x moves every y of its channel: itself, through the mean, through the variance",
    chapter="08-batch-norm",
    problem="""
        the backward of batch normalisation, in training mode.

            m = Σ x / M,   v = Σ (x - m)² / M          over the M = N·H·W numbers of a channel
            x̂ = (x - m) · s,   s = 1 / √(v + eps)
            y = weight · x̂ + bias

        Seen as a matrix (C × M), by as_matrix, every row is by itself. Backward gets dy (N, C, H, W) and hands back dx like
        dy, dweight (C,) and dbias (C,). m and v are made of x: they are no constants. The cache has x, mean and s = inv_std
        (C, 1), weight (C,) and M; x̂ is not kept, it can be made again.

        A batch may be spread over several processes, whose sums pooled_moments and pooled_sums add up. Here is one: they
        hand back what they get, and you may leave them out.
    """,
    source="scratchnet.layers.norm",
    given=("centre", "batch_norm_forward"),
    todo="batch_norm_backward",
    returns=("x", "weight", "bias"),
    run=pair("batch_norm"),
    cases=_cases,
    reference=lambda dy, arrays, options: reference.batch_norm_backward(dy, *arrays[:2], *options),
    knows=_knows,
    hints=(
        "Begin with the last line of forward: it gives dbias and dweight, sums over a row. For dx ask how "
        "xᵢ moves x̂ⱼ: itself, where i = j; through the mean, every j alike; through s, every j by its "
        "own x̂ⱼ.",
        "In formulas:\n[[BN.5]]\n[[BN.6]]\n[[BN.7]]\nThe two sums in the last are those that you already have.",
        "On rows (C, M): xhat = (as_matrix(x) - mean) * inv_std, dbias = grad.sum(axis=1), dweight = "
        "(grad * xhat).sum(axis=1), and dx = weight[:, None] * inv_std * (grad - dbias[:, None] / m - "
        "xhat * dweight[:, None] / m). as_images(dx, dy) at the end.",
    ),
)
