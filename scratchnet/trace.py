"""What a network does to one batch, step by step: shapes, parameters, multiply-adds, and which function computed it."""

from typing import NamedTuple

import numpy as np

from scratchnet import device
from scratchnet.array import to_device
from scratchnet.module import Module
from scratchnet.plan import LayerStep, plan


class Step(NamedTuple):
    """One layer's line: shapes without the batch axis, multiply-adds of one picture."""

    name: str
    layer: str
    shape_in: tuple
    shape_out: tuple
    parameters: int
    multiply_adds: int
    path: str


def trace(model: Module, picture: tuple[int, ...], dtype=np.float32) -> list[Step]:
    """Run one picture of zeros, shaped (C, H, W), through the network in eval mode, layer by layer; say what each one did.

    The modes of the network and its statistics stay as they are.

    Raises:
        ValueError: the picture does not fit the network; the message names the layer.
    """
    modes = [(module, module.training, module.saves) for _, module in model.named_modules()]
    where = next((device.device_of(parameter.data) for parameter in model.parameters()), "cpu")
    lines: list[Step] = []
    try:
        model.eval()
        x = to_device(np.zeros((1, *picture), dtype), where)
        for step in plan(model, fuse=False).steps:
            y = step.forward(x)
            if type(step) is LayerStep:  # the ends of a shortcut are no layers
                lines.append(_line(step.names[0], step.layers[0], x, y))
            x = y
    finally:
        for module, training, saves in modes:
            module.training, module.saves = training, saves
    return lines


def _line(name, layer, x, y):
    parameters = sum(parameter.data.size for parameter in layer.parameters())
    macs = y.size // len(y) * layer.multiply_adds if hasattr(layer, "multiply_adds") else 0
    return Step(name, layer.name, x.shape[1:], y.shape[1:], parameters, macs, getattr(layer, "path", ""))


def table(steps: list[Step]) -> str:
    """The steps as a table, with the sums at its foot."""
    lines = [f"{'layer':<24} {'kind':<16} {'in':<16} {'out':<16} {'parameters':>10} {'multiply-adds':>14}  path"]
    for s in steps:
        shapes = "×".join(map(str, s.shape_in)), "×".join(map(str, s.shape_out))
        counts = f"{s.parameters:>10,} {s.multiply_adds:>14,}"
        lines.append(f"{s.name:<24} {s.layer:<16} {shapes[0]:<16} {shapes[1]:<16} {counts}  {s.path}")
    total = sum(s.parameters for s in steps), sum(s.multiply_adds for s in steps)
    lines.append(f"{'sum':<24} {'':<16} {'':<16} {'':<16} {total[0]:>10,} {total[1]:>14,}")
    return "\n".join(lines)
