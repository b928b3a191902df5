"""Where the time of one training step goes: by step of the network, and by kernel.

    python benchmarks/profile_step.py [--case cifar-1.0] [--threads 2] [--steps 5]

A step is what `Sequential` computes at once: a fused step, a run of channelwise layers, or one layer; a row adds up all of
one kind, without what they call inside. The kernels' times are those of `kernels.run`, counted once again.
"""

import argparse
import time
from collections import defaultdict

from train_step import CASES, scratchnet_step

from scratchnet import kernels, sequential, slabs
from scratchnet.layers import fused
from scratchnet.layers.loss import CrossEntropyLoss
from scratchnet.training.optim import SGD


class Clock:
    """Adds up the time spent in wrapped functions, each without the wrapped functions that it calls."""

    def __init__(self):
        self.seconds, self.calls, self.inner = defaultdict(float), defaultdict(int), [0.0]

    def wrap(self, function, label):
        """The function, timed under what `label(*args)` says."""

        def timed(*args):
            self.inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                whole = time.perf_counter() - start
                self.seconds[label(*args)] += whole - self.inner.pop()
                self.calls[label(*args)] += 1
                self.inner[-1] += whole

        return timed


def kind(run):
    """What a step of a Sequential is, in the names of its layers."""
    return " + ".join(
        {"depthwise": "depthwise", "pointwise": "1×1"}.get(getattr(layer, "path", ""), type(layer).__name__)
        for _, layer in run.layers
    )


def main():
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, default="cifar-1.0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    print(f"{args.case}, {args.threads} threads, mean of {args.steps} steps; ms a picture\n")
    for line in profile(args.case, args.threads, args.steps):
        print(line)


def profile(case, threads, steps):
    """Lines of the two tables."""
    step = scratchnet_step(*CASES[case], threads)
    step()
    step()
    by_step, by_kernel, whole = Clock(), Clock(), Clock()
    for owner in (slabs.Run, fused.FusedStep):
        for name in ("forward", "backward"):
            setattr(owner, name, by_step.wrap(vars(owner)[name], lambda run, _, name=name: (kind(run), name)))
    for owner, label in ((CrossEntropyLoss, "loss"), (SGD, "optimizer")):
        for name in {"forward", "backward", "step"} & set(vars(owner)):
            setattr(owner, name, by_step.wrap(vars(owner)[name], lambda *_, row=(label, name): row))
    for name, owner in (("add", sequential),):
        setattr(owner, name, by_step.wrap(getattr(owner, name), lambda *_: ("shortcut", "")))
    kernels.run = by_kernel.wrap(kernels.run, lambda function, *_: (function.__name__, ""))
    step = whole.wrap(step, lambda: "all")
    for _ in range(steps):
        step()
    scale = 1e3 / CASES[case][3] / steps
    total = whole.seconds["all"] * scale
    for title, clock in (("step", by_step), ("kernel", by_kernel)):
        yield f"{title:<42} {'':<9} {'ms':>7} {'share':>6} {'calls':>6}"
        for label, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
            share = seconds * scale / total
            yield f"{label[0]:<42} {label[1]:<9} {seconds * scale:>7.3f} {share:>6.1%} {clock.calls[label] // steps:>6}"
        yield f"{'sum':<42} {'':<9} {sum(clock.seconds.values()) * scale:>7.3f} of {total:.3f}\n"


if __name__ == "__main__":
    main()
