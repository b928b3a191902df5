"""What a network does to one batch: layer by layer, with shapes and multiply-adds; or as a real step, with times."""

import copy
import math
import time
from typing import NamedTuple

import numpy as np

from scratchnet import device
from scratchnet.array import to_device
from scratchnet.layers.join import SUM
from scratchnet.module import Module
from scratchnet.parallel.threads import computing
from scratchnet.plan import aligned, plan, step_row, wanting_dx
from scratchnet.steps import Fork, Join, LayerStep, Turn


class Step(NamedTuple):
    """The line of a layer, or of a join that is no sum: shapes without the batch axis, all counts for one picture.

    `kept` is how many numbers branches that are not joined yet keep beside the layer's own x and y.
    """

    name: str
    layer: str
    shape_in: tuple
    shape_out: tuple
    parameters: int
    multiply_adds: int
    trained: int  # of the parameters, those that are not frozen
    kept: int = 0


def trace(model: Module, picture: tuple[int, ...], dtype=np.float32) -> list[Step]:
    """Run one picture of zeros, shaped (C, H, W), through the network in eval mode, layer by layer; say what each one did.

    The modes of the network and its statistics stay as they are.

    Raises:
        ValueError: the picture does not fit the network; the message names the layer.
    """
    modes = [(module, module.training, module.saves) for _, module in model.named_modules()]
    where = next((device.device_of(parameter.data) for parameter in model.parameters()), "cpu")
    lines: list[Step] = []
    kept: list[int] = []  # numbers, for each container with branches around
    try:
        model.eval()
        x = to_device(np.zeros((1, *picture), dtype), where)
        for step in plan(model, fuse=False).steps:
            y = step.forward(x)
            if type(step) is LayerStep or isinstance(step, Join) and step.layers[0].joined_by is not SUM:
                lines.append(_line(step, x, y, sum(kept)))
            if isinstance(step, Fork):
                kept.append(x.size)
            elif isinstance(step, Join):
                kept.pop()
            elif isinstance(step, Turn):
                kept[-1] += x.size
            x = y
    finally:
        for module, training, saves in modes:
            module.training, module.saves = training, saves
    return lines


def _line(step, x, y, kept):
    (name,), (layer,) = step.names, step.layers
    parameters = [parameter for _, parameter in step.parameters()]
    count, trained = (
        sum(p.data.size for p in some) for some in (parameters, [p for p in parameters if p.requires_grad])
    )
    macs = y.size // len(y) * layer.multiply_adds if hasattr(layer, "multiply_adds") else 0
    return Step(name, layer.name, x.shape[1:], y.shape[1:], count, macs, trained, kept)


class TimedStep(NamedTuple):
    """A step of the plan in a real training step: what ran, shapes without the batch axis, milliseconds both ways."""

    names: str
    kind: str
    function: str
    version: str
    shape_in: tuple
    shape_out: tuple
    multiply_adds: int
    forward_ms: float
    backward_ms: float


def trace_step(model: Module, criterion, x, labels) -> list[TimedStep]:
    """Take a real training step (forward, loss, backward), and say what each step of the plan did and how long it took.

    It is taken twice, by a copy of the network: the first time makes what later steps use again. The network itself, its
    gradients and its generators stay as they are.

    Args:
        model: a `Module`, in the mode that is to be looked at.
        criterion: as in a training step, say a `CrossEntropyLoss`.
        x, labels: a batch, where the model is.
    """
    twin = copy.deepcopy(model)
    for _ in range(2):
        planned, forward, backward = plan(twin), [], []
        with computing():
            y = x
            for step in planned.steps:
                shape_in = y.shape[1:]
                y, ms = _timed(step.forward, y)
                forward.append((shape_in, y.shape, ms))
            criterion(y, labels)
            dy = criterion.backward()
            for step, wanted in planned.backwards():
                with wanting_dx(wanted):
                    dy, ms = _timed(step.backward, dy)
                backward.append(ms)
        backward += [0.0] * (len(planned.steps) - len(backward))  # below all that is trained
    lines = []
    for step, (shape_in, shape, ms), back in zip(planned.steps, forward, reversed(backward), strict=True):
        macs = sum(getattr(layer, "multiply_adds", 0) for layer in step.layers) * math.prod(shape[1:])
        names, kind, function, version = step_row(step, device.kind_of(x))
        lines.append(TimedStep(names, kind, function, version, shape_in, shape[1:], macs, ms, back))
    return lines


def _timed(function, x):
    """(what it returns, milliseconds): on a GPU until it has computed it."""
    start = time.perf_counter()
    y = function(x)
    if device.device_of(y) == "cuda":
        device.import_cupy().cuda.Device().synchronize()
    return y, (time.perf_counter() - start) * 1e3


def table(steps: list[TimedStep]) -> str:
    """The steps of `trace_step` as a table, with the sums at its foot."""
    rows = [["layers", "kind", "function", "version", "in", "out", "multiply-adds", "forward ms", "backward ms"]]
    for s in steps:
        shapes = ["×".join(map(str, shape)) for shape in (s.shape_in, s.shape_out)]
        rows.append([*s[:4], *shapes, f"{s.multiply_adds:,}", f"{s.forward_ms:.2f}", f"{s.backward_ms:.2f}"])
    forward, backward = sum(s.forward_ms for s in steps), sum(s.backward_ms for s in steps)
    work = sum(s.multiply_adds for s in steps)
    rows.append(["sum", *[""] * 5, f"{work:,}", f"{forward:.2f}", f"{backward:.2f}"])
    return aligned(rows, numbers=3)
