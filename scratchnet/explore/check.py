"""The gradient check of each layer, at what the layer got in the step: the first pictures of the batch, in float64."""

import copy
from typing import NamedTuple

import numpy as np

from scratchnet.gradcheck import GradientMismatch, gradcheck
from scratchnet.gradcheck.report import NotComplex
from scratchnet.kernels import use_kernels
from scratchnet.layers.loss import cross_entropy_backward, cross_entropy_forward
from scratchnet.plan import plan
from scratchnet.steps import Join

PICTURES = 2  # of the batch: batch norm needs two where a channel is one number
SAMPLES = 4  # elements of each array, drawn; the adjoint test asks about all of them at once
METHODS = "complex-step", "finite-difference"  # the second where a layer cannot compute on complex numbers


class Checked(NamedTuple):
    """What a check found: `rows` are (array, shape, elements checked, worst relative error); `wrong` says what is."""

    method: str
    rtol: float
    rows: list
    wrong: str = ""


def check_layers(model, taken):
    """The `Checked` of each of `taken.layers`; None where nothing is computed."""
    fresh = copy.deepcopy(model).train()
    with use_kernels(False):
        steps = plan(fresh, fuse=False).steps
    return [_check(step, seen, taken) for step, seen in zip(steps, taken.layers, strict=True)]


def check_loss(criterion, logits, target):
    """The `Checked` of a loss, at the logits of the whole batch."""
    if hasattr(criterion, "label_smoothing"):

        def forward(z):
            return cross_entropy_forward(z, target, criterion.label_smoothing)

        return checked((forward, cross_entropy_backward), logits)
    pair = criterion.pair(None)
    return checked((lambda z: pair.forward(z, target, 1.0, "mean"), pair.backward), logits)


def _check(step, seen, taken):
    if isinstance(step, Join):
        pair = step.layers[0].joined_by
        parts = [taken.arrays[k] for k in joined(seen, taken)]
        return checked((pair.forward, pair.backward), tuple(part[:PICTURES] for part in parts))
    return checked(step.layers[0], taken.arrays[seen.x][:PICTURES]) if seen.is_layer else None


def joined(seen, taken):
    """Numbers of the arrays that a join got, one for each branch."""
    fork = seen.step.fork
    place = {id(layer.step): layer for layer in taken.layers}
    turns = [layer for layer in taken.layers if getattr(layer.step, "fork", None) is fork]
    ends = {layer.step.branch: layer.x for layer in turns}
    return [ends.get(branch, place[id(fork)].x) for branch in range(seen.step.of)]


def checked(module, x):
    """`gradcheck`, with what it finds wrong as a sentence."""
    x = tuple(np.array(part, np.float64) for part in x) if isinstance(x, tuple) else np.array(x, np.float64)
    with use_kernels(False):
        for method in METHODS:
            try:
                report = gradcheck(module, x, method=method, samples=SAMPLES)
            except NotComplex as error:
                wrong = str(error)
            except GradientMismatch as error:
                return Checked(method, 0.0, [], str(error))
            else:
                rows = [[row.name, list(row.shape), row.checked, float(row.error)] for row in report.rows]
                return Checked(report.method, report.rtol, rows)
    return Checked(METHODS[-1], 0.0, [], wrong)
