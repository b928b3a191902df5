"""What a network does to one batch: layer by layer, with shapes and multiply-adds; or as a real training step.

`trace` needs a shape alone. `trace_step` takes a step and measures it: how long each part took, how large what came out of
it is, in both directions, what ReLU6 cut off, how large the gradients are, and what is kept from forward to backward.
"""

import copy
import time
from typing import NamedTuple

import numpy as np

from scratchnet import device
from scratchnet.array import to_device
from scratchnet.held import held_by
from scratchnet.layers.activation import ReLU, ReLU6
from scratchnet.layers.join import SUM
from scratchnet.module import Module
from scratchnet.parallel.threads import computing
from scratchnet.plan import plan, step_row, wanting_dx
from scratchnet.steps import Fork, Join, LayerStep, MarkStep, Turn


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
        for step, x, y in _one_by_one(model, to_device(np.zeros((1, *picture), dtype), where)):
            if type(step) is LayerStep or isinstance(step, Join) and step.layers[0].joined_by is not SUM:
                lines.append(_line(step, x, y, sum(kept)))
            if isinstance(step, Fork):
                kept.append(x.size)
            elif isinstance(step, Join):
                kept.pop()
            elif isinstance(step, Turn):
                kept[-1] += x.size
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
    macs = layer.work(x.shape[1:], y.shape[1:])
    return Step(name, layer.name, x.shape[1:], y.shape[1:], count, macs, trained, kept)


def _one_by_one(model, x):
    """(step, x, y) for each layer and each mark, none of them joined with its neighbours; no layer keeps anything."""
    for step in plan(model, fuse=False).steps:
        y = step.forward(x)
        if type(step) is LayerStep:
            step.forget()
        yield step, x, y
        x = y


class TimedStep(NamedTuple):
    """A step of the plan in a real training step: what ran, and what came of it. Shapes are without the batch axis.

    Attributes:
        names, kind, function, version: as `plan` prints them.
        multiply_adds: of one picture forward.
        forward_ms, backward_ms: milliseconds; 0 where backward did not come by.
        y, dx: root of the mean square of what it gave forward and backward; None where there was no dx.
        zeros, sixes: shares, of what ReLU and ReLU6 in it gave; None where there are none.
        gradient: |dW| / |W|, all that it trains as one vector; None where it trains nothing.
        kept: bytes that backward finds, and that no step before this one has kept.
    """

    names: str
    kind: str
    function: str
    version: str
    shape_in: tuple
    shape_out: tuple
    multiply_adds: int
    forward_ms: float
    backward_ms: float
    y: float
    dx: float | None
    zeros: float | None
    sixes: float | None
    gradient: float | None
    kept: int


def trace_step(model: Module, criterion, x, labels) -> list[TimedStep]:
    """Take a real training step (forward, loss, backward), and say what each step of the plan did and how long it took.

    It is taken twice, by a copy of the network: the first time makes what later steps use again. Then layer by layer, since
    what happens between the layers of one step is never stored. The network itself, its gradients and its generators stay
    as they are.

    Args:
        model: a `Module`, in the mode that is to be looked at.
        criterion: as in a training step, say a `CrossEntropyLoss`.
        x, labels: a batch, where the model is.
    """
    twin = copy.deepcopy(model)
    twin.zero_grad()
    _walk(twin, criterion, x, labels)
    twin.zero_grad()
    inside = _inside(copy.deepcopy(twin), x)  # with what the second step will draw
    lines = []
    for step, measured in _walk(twin, criterion, x, labels):
        facts = [] if isinstance(step, MarkStep) else [inside[name] for name in step.names if name in inside]
        macs, zeros, sixes, of, of6 = map(sum, zip(*facts, strict=True)) if facts else (0,) * 5
        measured |= {"multiply_adds": macs, "gradient": _relative_gradient(step)}
        measured |= {"zeros": zeros / of if of else None, "sixes": sixes / of6 if of6 else None}
        lines.append(TimedStep(*step_row(step, device.kind_of(x)), **measured))
    return lines


def _walk(model, criterion, x, labels):
    """A forward and a backward through the plan: [(step, what was measured of it)]."""
    planned, found, y = plan(model), [], x
    counted: dict = {}
    with computing():
        for step in planned.steps:
            before, shape_in = held_by(step), y.shape[1:]
            y, ms = _timed(step.forward, y)
            new = {k: array for k, array in held_by(step).items() if k not in before and k not in counted}
            counted |= new  # held on to: an address is not given away again
            kept = sum(array.nbytes for array in new.values())
            shapes = {"shape_in": shape_in, "shape_out": y.shape[1:]}
            found.append(
                (step, {**shapes, "forward_ms": ms, "backward_ms": 0.0, "y": _size(y), "dx": None, "kept": kept})
            )
        counted.clear()
        criterion(y, labels)
        dy = criterion.backward()
        measured = {id(step): numbers for step, numbers in found}
        for step, wanted in planned.backwards():
            with wanting_dx(wanted):
                dy, ms = _timed(step.backward, dy)
            measured[id(step)] |= {"backward_ms": ms, "dx": None if dy is None else _size(dy)}
        for step in planned.steps[: planned.lowest]:  # below all that is trained
            step.forget()
    return found


def _inside(model, x):
    """Layer -> (multiply-adds of a picture, zeros, sixes, numbers of ReLU and ReLU6, those of ReLU6)."""
    found = {}
    for step, given, y in _one_by_one(model, x):
        if type(step) is LayerStep:
            layer = step.layers[0]
            of, of6 = (y.size if isinstance(layer, kinds) else 0 for kinds in ((ReLU, ReLU6), ReLU6))
            zeros, sixes = (int((_exact(y) == value).sum()) if of else 0 for value in (0, 6))
            work = layer.work(given.shape[1:], y.shape[1:])
            found[step.names[0]] = work, zeros, sixes if of6 else 0, of, of6
    return found


def _relative_gradient(step):
    trained = [parameter for _, parameter in step.parameters() if parameter.requires_grad]
    if not trained:
        return None
    gradient, weight = (
        sum(_size(array) ** 2 * array.size for array in arrays) ** 0.5
        for arrays in ([p.grad for p in trained], [p.data for p in trained])
    )
    return gradient / weight if weight else float("inf")


def _size(x):
    """Root of the mean square of an array's numbers."""
    exact = _exact(x)
    return float((exact * exact).mean(dtype="float64")) ** 0.5


def _exact(x):
    """In float32, or in float64 what is so: CuPy computes nothing in bfloat16."""
    return x.astype("float64" if x.dtype.itemsize > 4 else "float32")


def _timed(function, x):
    """(what it returns, milliseconds): on a GPU until it has computed it."""
    start = time.perf_counter()
    y = function(x)
    if y is not None and device.device_of(y) == "cuda":
        device.import_cupy().cuda.get_current_stream().synchronize()
    return y, (time.perf_counter() - start) * 1e3
