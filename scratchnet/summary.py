"""What a network is at a glance: its layers, what each puts out, has and computes, and what a training step takes.

As trace.py it runs one picture of zeros through the network; nothing of the network changes.
"""

import math
from dataclasses import dataclass

import numpy as np

from scratchnet import kernels
from scratchnet.module import Module
from scratchnet.plan import aligned, ending, plan
from scratchnet.trace import Step, trace

# A training step's peak over the sum of all layers' float32 outputs, by the kernels, measured for two variants, widths 0.25
# to 1.4 and pictures of 32 to 96 pixels: 0.35 to 0.39, 0.45 to 0.55, 0.66 to 0.72. Fused layers keep no result in between.
# Where none are fused, as in ResNets, whose activation is ReLU, every kernel takes what plain ones do: ResNet-20 0.71.
SHARES = {"compiled": 0.4, "numpy": 0.56, False: 0.75}
WIDTH = 100  # of the table, at most
KIND = 20  # of it for a layer's class


@dataclass(frozen=True, repr=False)
class Summary:
    """What `summary` has found; `print` shows it as a table.

    Attributes:
        layers: a `trace.Step` for each layer, with shapes without the batch axis.
        parameters: how many numbers are in all parameters.
        trained: in those that are not frozen.
        multiply_adds: of one picture forward.
        parameter_bytes: of all parameters; their gradients take as much again.
        picture_bytes: what one more picture in a batch adds to the peak of a training step on the CPU, an estimate.
    """

    layers: list[Step]
    parameters: int
    trained: int
    multiply_adds: int
    parameter_bytes: int
    picture_bytes: float

    def __str__(self):
        rows = [["layer", "kind", "output", "parameters", "multiply-adds"]]
        for step in self.layers:
            count = f"{step.parameters:,}" if step.parameters else ""
            if step.trained < step.parameters:
                count = f"({count})" if not step.trained else f"({count}) {step.trained:,}"
            shape, work = "×".join(map(str, step.shape_out)), f"{step.multiply_adds:,}" if step.multiply_adds else ""
            rows.append([step.name, ending(step.layer, KIND), shape, count, work])
        rows.append(["sum", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}"])
        others = sum(max(len(row[k]) for row in rows) + 2 for k in range(1, 5))
        lines = aligned([[ending(name, WIDTH - others), *rest] for name, *rest in rows], numbers=2).split("\n")
        rule = "─" * max(map(len, lines))
        frozen = self.parameters - self.trained
        foot = [
            f"{self.trained:,} parameters are trained, {frozen:,} frozen" + (" (in brackets)" if frozen else ""),
            f"memory of a training step: {_size(2 * self.parameter_bytes)} for parameters and gradients, "
            f"about {_size(self.picture_bytes)} a picture",
        ]
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *foot])

    def __repr__(self):
        return str(self)


def summary(model: Module, shape: tuple[int, ...]) -> Summary:
    """A network's layers, parameters and work, for pictures of one size; `print` shows a table of at most 100 columns.

    Args:
        model: a `Module`. One that is no plain chain is a single row.
        shape: of one picture (C, H, W), or of one vector (F,): without the batch axis.

    Raises:
        ValueError: such a picture does not fit the network; the message names the layer.
    """
    if len(shape) > 3:
        raise ValueError(
            f"summary: shape is that of one picture, (C, H, W), without the batch axis, got {tuple(shape)}"
        )
    parameters = list(model.parameters())
    dtype = parameters[0].data.dtype if parameters else np.dtype(np.float32)
    layers = trace(model, tuple(shape), dtype)
    return Summary(
        layers,
        model.num_parameters(),
        model.num_parameters(trained_only=True),
        sum(step.multiply_adds for step in layers),
        sum(parameter.data.nbytes for parameter in parameters),
        _bytes_per_picture(model, layers, dtype),
    )


def bytes_per_picture(model: Module, shape: tuple[int, int, int]) -> float:
    """What one more picture (C, H, W) in a batch adds to the peak of a float32 training step, in bytes; an estimate."""
    return _bytes_per_picture(model, trace(model, shape), np.dtype(np.float32))


def _bytes_per_picture(model, layers, dtype):
    fused = any(len(step.layers) > 1 for step in plan(model).steps)
    share = SHARES[kernels.enabled() if fused else False]
    return share * dtype.itemsize * sum(math.prod(step.shape_out) for step in layers)


def _size(count):
    """Bytes in words: three digits of KiB or MiB."""
    unit, name = (2**20, "MiB") if count >= 2**20 else (2**10, "KiB")
    return f"{count / unit:.3g} {name}" if count < 999 * unit else f"{count / unit:,.0f} {name}"
