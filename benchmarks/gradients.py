"""How deep the gradients agree: many drawn layers of every kind, each checked by every method; a table in Markdown.

    python benchmarks/gradients.py [--cases 200] [--seed 0]

A case draws sizes, options, parameters and input. An error is relative to the largest gradient of the same array; the table
has the largest of all cases, and over all elements of x and of every parameter. Only a gradient that is wrong by 1e-3, a
mistake and not rounding, stops it.
"""

import argparse
import time

import numpy as np
from machine import head

import scratchnet as sn
from scratchnet.fused.pointwise import conv_norm_relu6_backward, conv_norm_relu6_forward
from scratchnet.gradcheck.probe import METHODS
from scratchnet.layers import elementwise_loss as each
from scratchnet.layers.loss import cross_entropy_backward, cross_entropy_forward


def draw_conv(rng, path):
    """A convolution on the path `path`, and a picture on which its window fits."""
    groups = {"grouped": int(rng.integers(2, 4)), "depthwise": int(rng.integers(2, 6))}.get(path, 1)
    inputs = groups if path == "depthwise" else groups * int(rng.integers(1, 4))
    outputs = groups if path == "depthwise" else groups * int(rng.integers(1, 4))
    if path == "grouped":
        inputs += groups  # more than one channel a group, or it would be depthwise
    one = path == "pointwise"
    kernel = (1, 1) if one else tuple(int(k) for k in rng.integers(1, 4, 2) + (path == "dense"))
    stride, dilation = (tuple(int(k) for k in rng.integers(1, 3, 2)) for _ in range(2))
    padding = (0, 0) if one else tuple(int(k) for k in rng.integers(0, 4, 2))
    size = [d * (k - 1) + 1 + int(more) for d, k, more in zip(dilation, kernel, rng.integers(0, 4, 2), strict=True)]
    options = {"dilation": dilation, "groups": groups, "dtype": np.float64, "rng": rng}
    conv = sn.Conv2d(inputs, outputs, kernel, stride, padding, **options)
    conv.path = path
    return conv, rng.standard_normal((int(rng.integers(1, 4)), inputs, *size))


def sizes(rng, most=(4, 5, 6, 5), per_channel=2):
    """(N, C, H, W), each at least 1 and N at least 2, with at least `per_channel` numbers in a channel."""
    while True:
        n, c, h, w = (int(rng.integers(1, m + 1)) for m in most)
        if (n + 1) * h * w >= per_channel:
            return n + 1, c, h, w


def away_from_kinks(rng, shape, below=(-3.0, 0.0, 6.0)):
    """Numbers of the intervals of length 3 that begin at `below`, none within 0.05 of a bound."""
    return rng.choice(below, shape) + rng.uniform(0.05, 2.9, shape)


def draw_norm(rng, frozen):
    """Batch norm with statistics and parameters that are not the initial ones.

    Of three numbers, two may nearly agree; a difference's step is then no longer small beside their spread.
    """
    shape = sizes(rng, per_channel=8)
    norm = sn.BatchNorm2d(shape[1], dtype=np.float64)
    for array in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        array += rng.uniform(0.1, 0.9, array.shape)
    return norm.eval() if frozen else norm, rng.normal(rng.uniform(-5, 5), rng.uniform(0.5, 5), shape)


def draw_pool(rng):
    """Average pooling with any of its options."""
    kernel = int(rng.integers(1, 4))
    options = {"ceil_mode": bool(rng.integers(2)), "count_include_pad": bool(rng.integers(2))}
    pool = sn.AvgPool2d(kernel, int(rng.integers(1, 4)), int(rng.integers(0, kernel // 2 + 1)), **options)
    shape = sizes(rng)
    return pool, rng.standard_normal((*shape[:2], shape[2] + 2, shape[3] + 2))


def draw_max_pool(rng):
    """Max pooling of numbers of which no two are near each other."""
    kernel, shape = int(rng.integers(1, 4)), sizes(rng, (2, 3, 4, 4))
    shape = (*shape[:2], shape[2] + 2, shape[3] + 2)
    options = {"dilation": 1, "ceil_mode": bool(rng.integers(2))}
    pool = sn.MaxPool2d(kernel, int(rng.integers(1, 4)), int(rng.integers(0, kernel // 2 + 1)), **options)
    return pool, rng.permutation(np.prod(shape)).reshape(shape) - np.prod(shape) / 2


def draw_transposed(rng):
    """A transposed convolution with any of its options."""
    groups, ins, outs = (int(rng.integers(1, 3)) for _ in range(3))
    kernel, stride, dilation = (tuple(int(k) for k in rng.integers(1, 4, 2)) for _ in range(3))
    padding = tuple(int(rng.integers(0, d * (k - 1) // 2 + 1)) for d, k in zip(dilation, kernel, strict=True))
    extra = tuple(int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True))
    options = {"bias": True, "dilation": dilation, "dtype": np.float64, "rng": rng}
    conv = sn.ConvTranspose2d(groups * ins, groups * outs, kernel, stride, padding, extra, groups, **options)
    return conv, rng.standard_normal((int(rng.integers(1, 4)), groups * ins, *(int(k) for k in rng.integers(2, 5, 2))))


def draw_group_norm(rng, layers):
    """Group norm, or layer norm, with parameters that are not the initial ones."""
    n, c, h, w = sizes(rng)
    shape = n, 2 * c, h + 1, w + 2
    norm = sn.LayerNorm(shape[1:], dtype=np.float64) if layers else sn.GroupNorm(c, 2 * c, dtype=np.float64)
    for array in (norm.weight.data, norm.bias.data):
        array += rng.uniform(0.1, 0.9, array.shape)
    return norm, rng.normal(rng.uniform(-5, 5), rng.uniform(0.5, 5), shape)


def draw_upsample(rng, mode):
    """Enlarging, or shrinking, to a drawn size."""
    shape = sizes(rng)
    size = tuple(int(k) for k in rng.integers(1, 9, 2))
    return sn.Upsample(size=size, mode=mode), rng.standard_normal(shape)


def draw_each(rng, forward, backward, below=None):
    """A loss over numbers, against drawn ones."""
    shape = int(rng.integers(1, 6)), int(rng.integers(1, 8))
    numbers = rng.integers(0, 2, shape)
    x = rng.standard_normal(shape) if below is None else numbers + away_from_kinks(rng, shape)
    return (lambda z: forward(z, numbers), backward), x


def draw_loss(rng):
    """Cross entropy of some logits and labels."""
    shape = int(rng.integers(1, 6)), int(rng.integers(2, 8))
    labels, smoothing = rng.integers(0, shape[1], shape[0]), float(rng.choice([0.0, 0.1]))
    return (lambda z: cross_entropy_forward(z, labels, smoothing), cross_entropy_backward), rng.standard_normal(shape)


def draw_fused(rng):
    """1×1 convolution, batch norm and ReLU6 as one, most outputs between the bounds, the bias away from them."""
    n, c, h, w = sizes(rng, per_channel=8)
    outputs = c + int(rng.integers(0, 4))
    weight = rng.uniform(0.5, 2, (outputs, c, 1, 1)) * rng.choice([-1, 1], (outputs, c, 1, 1))  # long beside a step
    arrays = rng.standard_normal((n, c, h + 1, w)), weight

    def forward(x, weight, gamma, beta):
        y, _, _, cache = conv_norm_relu6_forward(x, weight, gamma, beta, 1e-5)
        return y, cache

    return (forward, conv_norm_relu6_backward), (
        *arrays,
        rng.uniform(0.1, 0.3, outputs),
        rng.uniform(2.5, 3.5, outputs),
    )


LAYERS = {
    **{
        f"Conv2d, {path}": (lambda rng, p=path: draw_conv(rng, p))
        for path in ("dense", "grouped", "depthwise", "pointwise")
    },
    "BatchNorm2d, training": lambda rng: draw_norm(rng, frozen=False),
    "BatchNorm2d, frozen": lambda rng: draw_norm(rng, frozen=True),
    "conv + norm + ReLU6, fused": draw_fused,
    "ReLU": lambda rng: (sn.ReLU(), away_from_kinks(rng, sizes(rng))),
    "ReLU6": lambda rng: (sn.ReLU6(), away_from_kinks(rng, sizes(rng))),
    "AvgPool2d": draw_pool,
    "GlobalAvgPool2d": lambda rng: (sn.GlobalAvgPool2d(), rng.standard_normal(sizes(rng))),
    "Flatten": lambda rng: (sn.Flatten(), rng.standard_normal(sizes(rng))),
    "Linear": lambda rng: (
        sn.Linear(5, 4, dtype=np.float64, rng=rng),
        rng.standard_normal((int(rng.integers(1, 6)), 5)),
    ),
    "Dropout": lambda rng: (sn.Dropout(float(rng.uniform(0, 0.9)), rng=rng), rng.standard_normal(sizes(rng))),
    "cross entropy": draw_loss,
    **{
        layer.__name__: (lambda rng, layer=layer: (layer(), rng.standard_normal(sizes(rng))))
        for layer in (sn.Sigmoid, sn.Tanh, sn.SiLU, sn.GELU, sn.Softmax)
    },
    "LeakyReLU": lambda rng: (sn.LeakyReLU(float(rng.uniform(0, 0.5))), away_from_kinks(rng, sizes(rng))),
    **{
        layer.__name__: (lambda rng, layer=layer: (layer(), away_from_kinks(rng, sizes(rng), (-6.0, -3.0, 0.0, 3.0))))
        for layer in (sn.Hardsigmoid, sn.Hardswish)
    },
    "MaxPool2d": draw_max_pool,
    "AdaptiveAvgPool2d": lambda rng: (
        sn.AdaptiveAvgPool2d(tuple(int(k) for k in rng.integers(1, 6, 2))),
        rng.standard_normal(sizes(rng)),
    ),
    "ConvTranspose2d": draw_transposed,
    "Upsample, nearest": lambda rng: draw_upsample(rng, "nearest"),
    "Upsample, bilinear": lambda rng: draw_upsample(rng, "bilinear"),
    "GroupNorm": lambda rng: draw_group_norm(rng, layers=False),
    "LayerNorm": lambda rng: draw_group_norm(rng, layers=True),
    "squared error": lambda rng: draw_each(
        rng, lambda z, t: each.mse_loss_forward(z, t, "mean"), each.mse_loss_backward
    ),
    "absolute error": lambda rng: draw_each(
        rng, lambda z, t: each.l1_loss_forward(z, t, "mean"), each.l1_loss_backward, below=True
    ),
    "binary cross entropy": lambda rng: draw_each(
        rng, lambda z, t: each.bce_with_logits_loss_forward(z, t, 2.0, "mean"), each.bce_with_logits_loss_backward
    ),
}


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"| layer | cases | elements | {' | '.join(METHODS)} | adjoint |")
    print("| --- | ---: | ---: |" + " ---: |" * (len(METHODS) + 1))
    started = time.perf_counter()
    for name, draw in LAYERS.items():
        worst, adjoint, elements = dict.fromkeys(METHODS, 0.0), 0.0, 0
        for case in range(args.cases):
            for method in METHODS:
                rng = np.random.default_rng((args.seed, case))
                report = sn.gradcheck(*draw(rng), method=method, rng=rng, rtol=1e-3)  # the table shows what it is
                worst[method] = max(worst[method], *(row.error for row in report.rows))
                if method == "complex-step":
                    adjoint = max(adjoint, report.rows[-1].error)
                    elements += sum(row.checked for row in report.rows[:-1])
        errors = " | ".join(f"{error:.0e}" for error in (*worst.values(), adjoint))
        print(f"| {name} | {args.cases} | {elements:,} | {errors} |", flush=True)
    print(f"\n{time.perf_counter() - started:.0f} s on {head()}")


if __name__ == "__main__":
    main()
