"""Where the time of one training step goes: by kind of step of the plan.

    python benchmarks/train_step.py --profile [--case cifar-1.0] [--kernels numpy]

A row adds up all steps of one kind, from a real training step of the network (`scratchnet.trace.trace_step`). The loss and
the optimizer are not in it.
"""

from collections import defaultdict

import engines  # noqa: F401 (puts the checkout on the path)
import numpy as np

import scratchnet as sn
from scratchnet.trace import trace_step

STEPS = 5


def kind(layers):
    """What a step of the plan is, in the names of its layers."""
    return " + ".join(
        {"depthwise": "depthwise", "pointwise": "1×1"}.get(getattr(layer, "path", ""), type(layer).__name__)
        for layer in layers
    )


def batch_for(what):
    """The network, a batch of noise and its labels, for a spec of `engines.py`."""
    from models import MobileNetV2

    sn.set_num_threads(what["threads"])
    rng = np.random.default_rng(0)
    model = MobileNetV2(10, what["width"], what["variant"], rng=rng)
    x = sn.as_images(rng.standard_normal((3, what["size"], what["size"], what["batch"]), dtype=np.float32))
    return model, x, rng.integers(0, 10, what["batch"])


def profile(what, kernels=True):
    """Lines of the table, for a spec of `engines.py` and an argument of `sn.use_kernels`."""
    sn.use_kernels(kernels)
    model, x, labels = batch_for(what)
    kinds = [getattr(step, "title", "") or kind(step.layers) for step in sn.plan(model).steps]
    times: dict = defaultdict(lambda: [0, 0.0, 0.0])
    for _ in range(STEPS):
        for name, step in zip(kinds, trace_step(model, sn.CrossEntropyLoss(), x, labels), strict=True):
            row = times[name, step.function, step.version]
            row[0] += 1
            row[1] += step.forward_ms / len(x) / STEPS
            row[2] += step.backward_ms / len(x) / STEPS
    total = sum(forward + backward for _, forward, backward in times.values())
    yield f"{what['threads']} threads, mean of {STEPS} steps: {total:.3f} ms a picture"
    yield f"  {'step':<34} {'function':<22} {'version':<8} {'count':>5} {'forward':>8} {'backward':>8} {'share':>6}"
    for (name, function, version), (count, there, back) in sorted(times.items(), key=lambda item: -sum(item[1][1:])):
        numbers = f"{count // STEPS:>5} {there:>8.3f} {back:>8.3f} {(there + back) / total:>6.1%}"
        yield f"  {name:<34} {function:<22} {version:<8} {numbers}"
    yield ""
