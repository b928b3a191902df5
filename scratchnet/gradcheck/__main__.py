"""`python -m scratchnet.gradcheck`: check every layer of the library, and a narrow MobileNetV2, and print one table.

Exit code 1 when a gradient is wrong.
"""

import argparse
import signal
import sys
import time

import numpy as np

import scratchnet as sn
from scratchnet.gradcheck import DIRECTIONS
from scratchnet.layers import elementwise_loss as each
from scratchnet.layers import loss as loss_of

NETWORK_RTOL = 1e-11  # fifty layers deep, rounding alone comes to 1e-12
NETWORK_SAMPLES = 2  # elements of each of its arrays


def catalogue(rng):
    """(name, module or pair of functions, x, whether to check eval mode too, gradcheck's options) for every layer."""

    def away_from_kinks(*shape, below=(-3.0, 0.0, 6.0)):
        """Numbers of the intervals of length 3 that begin at `below`, none of them within 0.05 of a bound."""
        low = rng.choice(below, shape)
        return low + rng.uniform(0.05, 2.9, shape)

    x = rng.standard_normal((3, 4, 7, 6))
    f64 = {"dtype": np.float64, "rng": rng}
    labels, numbers = rng.integers(0, 5, 4), rng.integers(0, 2, (4, 5))
    loss = (lambda z: loss_of.cross_entropy_forward(z, labels, 0.1)), loss_of.cross_entropy_backward
    weighted = (
        lambda z: loss_of.weighted_cross_entropy_forward(z, labels, 0.1, np.arange(1.0, 6), labels[0], "mean"),
        loss_of.weighted_cross_entropy_backward,
    )
    squared = (lambda z: each.mse_loss_forward(z, numbers, "mean")), each.mse_loss_backward
    absolute = (lambda z: each.l1_loss_forward(z, numbers, "mean")), each.l1_loss_backward
    binary = (
        lambda z: each.bce_with_logits_loss_forward(z, numbers, 2.0, "mean"),
        each.bce_with_logits_loss_backward,
    )
    shortcut = sn.Residual(sn.Conv2d(4, 4, 3, padding=1, bias=False, **f64), sn.BatchNorm2d(4, dtype=np.float64))
    yield "Conv2d dense", sn.Conv2d(4, 5, (3, 2), (2, 1), (1, 2), (1, 2), **f64), x, False, {}
    yield "Conv2d grouped", sn.Conv2d(4, 6, 3, 2, 1, groups=2, **f64), x, False, {}
    yield "Conv2d depthwise", sn.Conv2d(4, 4, 3, 2, 1, groups=4, **f64), x, False, {}
    yield "Conv2d pointwise", sn.Conv2d(4, 5, 1, **f64), x, False, {}
    yield "BatchNorm2d", sn.BatchNorm2d(4, dtype=np.float64), x, True, {}
    yield "ReLU", sn.ReLU(), away_from_kinks(3, 4, 5, 6), False, {}
    yield "ReLU6", sn.ReLU6(), away_from_kinks(3, 4, 5, 6), False, {}
    yield "LeakyReLU", sn.LeakyReLU(0.2), away_from_kinks(3, 4, 5, 6), False, {}
    for hard in (sn.Hardsigmoid, sn.Hardswish):
        yield hard.__name__, hard(), away_from_kinks(3, 4, 5, 6, below=(-6.0, -3.0, 0.0, 3.0)), False, {}
    for smooth in (sn.Sigmoid, sn.Tanh, sn.SiLU, sn.GELU, sn.Softmax, sn.Identity):
        yield smooth.__name__, smooth(), x, False, {}
    yield "AvgPool2d", sn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), x, False, {}
    yield "GlobalAvgPool2d", sn.GlobalAvgPool2d(), x, False, {}
    yield "MaxPool2d", sn.MaxPool2d(3, 2, 1, ceil_mode=True), x, False, {}
    yield "AdaptiveAvgPool2d", sn.AdaptiveAvgPool2d((3, 4)), x, False, {}
    yield "ConvTranspose2d", sn.ConvTranspose2d(4, 6, (3, 2), 2, (1, 0), 1, 2, dilation=(1, 2), **f64), x, False, {}
    yield "Upsample", sn.Upsample(scale_factor=(1.5, 2), mode="bilinear"), x, False, {}
    yield "GroupNorm", sn.GroupNorm(2, 4, dtype=np.float64), x, False, {}
    yield "LayerNorm", sn.LayerNorm((4, 7, 6), dtype=np.float64), x, False, {}
    yield "BatchNorm1d", sn.BatchNorm1d(7, dtype=np.float64), rng.standard_normal((4, 7)), True, {}
    yield "Flatten", sn.Flatten(), x, False, {}
    yield "Linear", sn.Linear(7, 5, **f64), rng.standard_normal((4, 7)), False, {}
    yield "Dropout", sn.Dropout(0.4, rng=rng), x, True, {}
    yield "Residual", shortcut, x, True, {}
    gate = sn.Sequential(sn.GlobalAvgPool2d(), sn.Conv2d(4, 4, 1, **f64))
    yield "Add", sn.Add(sn.Conv2d(4, 5, 1, **f64), sn.Conv2d(4, 5, 3, padding=1, **f64)), x, False, {}
    yield "Concat", sn.Concat(sn.Sequential(), sn.Conv2d(4, 5, 1, **f64)), x, False, {}
    yield "Multiply", sn.Multiply(sn.Sequential(), gate), x, False, {}
    yield "cross entropy", loss, rng.standard_normal((4, 5)), False, {}
    yield "weighted cross entropy", weighted, rng.standard_normal((4, 5)), False, {}
    yield "squared error", squared, rng.standard_normal((4, 5)), False, {}
    yield "absolute error", absolute, numbers + away_from_kinks(4, 5), False, {}
    yield "binary cross entropy", binary, rng.standard_normal((4, 5)), False, {}
    from scratchnet.models import MobileNetV2

    for variant in ("cifar", "imagenet", "blog"):
        network = MobileNetV2(10, 0.25, variant, dtype=np.float64, rng=rng)
        picture = rng.standard_normal((3, 3, 40, 33) if variant != "cifar" else (2, 3, 16, 12))
        yield f"MobileNetV2 {variant}", network, picture, True, {"rtol": NETWORK_RTOL, "samples": NETWORK_SAMPLES}


def main(arguments=()):
    """Print a line for each check as it is done; returns the exit code."""
    parser = argparse.ArgumentParser("python -m scratchnet.gradcheck", description=__doc__)
    if unknown := parser.parse_known_args(arguments)[1]:
        print(f"{parser.prog}: takes nothing but --help, got {' '.join(unknown)}", file=sys.stderr)
        return 2
    rng = np.random.default_rng(0)
    started, wrong, checks, elements, worst = time.perf_counter(), 0, 0, 0, 0.0
    print(f"{'checked':<22} {'mode':<6} {'arrays':>6} {'elements':>9} {'worst error':>12} {'allowed':>8}  worst in")
    for name, module, x, eval_too, options in catalogue(rng):
        for mode in ("train", "eval") if eval_too else ("train",):
            if isinstance(module, sn.Module):
                module.train() if mode == "train" else module.eval()
            try:
                report = sn.gradcheck(module, x, rng=rng, **options)
            except sn.GradientMismatch as error:
                print(f"{name:<22} {mode:<6} WRONG: {error}")
                wrong += 1
                continue
            arrays = report.rows[:-1]  # the last row is the adjoint test
            row = max(report.rows, key=lambda row: row.error)
            count = sum(r.checked for r in arrays)
            checks, elements, worst = checks + 1, elements + count, max(worst, row.error)
            print(
                f"{name:<22} {mode:<6} {len(arrays):>6} {count:>9} {row.error:>12.1e} {report.rtol:>8.0e}  {row.name}"
            )
    seconds = time.perf_counter() - started
    print(f"{checks} checks, {elements} elements, each also in {DIRECTIONS} directions at once; "
          f"worst error {worst:.1e}; {wrong} wrong; {seconds:.0f} s")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a pipe gets each line when it is done
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that leaves, as `head` does, ends it without a word
    sys.exit(main(sys.argv[1:]))
