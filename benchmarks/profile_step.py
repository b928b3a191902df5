"""Where the time of one training step goes: by step of the network, and by kernel.

    python benchmarks/train_step.py --profile [--case cifar-1.0]

A step is what `Sequential` computes at once: a fused step, a run of channelwise layers, or one layer; a row adds up all of
one kind, without what they call inside. The kernels' times are those of `kernels.run`, counted once again; of what runs in
slabs on several threads, the calling thread's share is counted.
"""

import threading
import time
from collections import defaultdict

from engines import scratchnet_step

from scratchnet import kernels, sequential, slabs
from scratchnet.layers import fused
from scratchnet.layers.loss import CrossEntropyLoss
from scratchnet.training.optim import Optimizer

STEPS = 5


class Clock:
    """Adds up the time spent in wrapped functions, each without the wrapped functions that it calls."""

    def __init__(self):
        self.seconds, self.calls, self.inner = defaultdict(float), defaultdict(int), [0.0]
        self.thread, self.originals = threading.get_ident(), []

    def wrap(self, owner, name, label):
        """Time `owner.name`, under what `label(*args)` says."""
        function = getattr(owner, name)
        self.originals.append((owner, name, function))

        def timed(*args):
            if threading.get_ident() != self.thread:
                return function(*args)
            self.inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                whole = time.perf_counter() - start
                self.seconds[label(*args)] += whole - self.inner.pop()
                self.calls[label(*args)] += 1
                self.inner[-1] += whole

        setattr(owner, name, timed)

    def restore(self):
        """Take the wrappers off again."""
        for owner, name, function in self.originals:
            setattr(owner, name, function)


def kind(run):
    """What a step of a Sequential is, in the names of its layers."""
    return " + ".join(
        {"depthwise": "depthwise", "pointwise": "1×1"}.get(getattr(layer, "path", ""), type(layer).__name__)
        for _, layer in run.layers
    )


def profile(what):
    """Lines of the two tables, for a spec of `engines.py`."""
    step = scratchnet_step(**what)
    step()
    step()
    by_step, by_kernel = Clock(), Clock()
    for owner in (slabs.Run, fused.FusedStep):
        for name in ("forward", "backward"):
            by_step.wrap(owner, name, lambda run, _, name=name: (kind(run), name))
    for owner, name in ((CrossEntropyLoss, "forward"), (CrossEntropyLoss, "backward"), (Optimizer, "step")):
        by_step.wrap(owner, name, lambda *_, owner=owner, name=name: (owner.__name__, name))
    by_step.wrap(sequential, "add", lambda *_: ("shortcut", ""))
    by_kernel.wrap(kernels, "run", lambda function, *_: (function.__name__, ""))
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    total = (time.perf_counter() - start) * 1e3 / what["batch"] / STEPS
    for clock in (by_step, by_kernel):
        clock.restore()
    yield f"{what['threads']} threads, mean of {STEPS} steps: {total:.3f} ms a picture"
    for title, clock in (("step of the network", by_step), ("kernel", by_kernel)):
        yield f"  {title:<42} {'':<9} {'ms':>7} {'share':>6} {'calls':>6}"
        for label, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
            ms = seconds * 1e3 / what["batch"] / STEPS
            yield f"  {label[0]:<42} {label[1]:<9} {ms:>7.3f} {ms / total:>6.1%} {clock.calls[label] // STEPS:>6}"
    yield ""
