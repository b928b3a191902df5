"""A network whose numbers lie on grids of 8 bits, simulated in floats: to measure, to fine-tune, and to make integers of.

Batch norm is folded first (fused/inference.py). Then every convolution multiplies with rounded weights, and behind it,
behind the sum of a shortcut and behind a mean there is a `Quantize`, in the place of a rectifier where there was one.

In float64 every number on a grid is the one that integer.py has: since m is odd (QUANT.6), no sum lies nearer than 2⁻ⁿ of a
step to where rounding changes its mind, and float64 is right to far less than that. (Tests compare them all; no bound is
proved for any weights whatever.)
"""

import math
from itertools import pairwise
from typing import Any

from scratchnet.array import to_device
from scratchnet.branches import Branches, Residual
from scratchnet.fused.inference import fold_batch_norm
from scratchnet.layers.activation import ReLU, ReLU6
from scratchnet.layers.conv import Conv2d
from scratchnet.layers.dropout import Dropout
from scratchnet.layers.join import Mark
from scratchnet.layers.linear import Flatten, Linear
from scratchnet.layers.pool import GlobalAvgPool2d
from scratchnet.module import Module
from scratchnet.quantized.scheme import (
    LEVELS,
    QUANTIZE,
    Grid,
    grid_of,
    quantize_backward,
    quantize_forward,
    quantized,
    snapped,
)
from scratchnet.sequential import Sequential

GRID = "grid"  # a `Quantize` that takes no layer's place is called by the name of the layer before it, and this


class Quantize(Module):
    """Put x, of any shape, on a grid of 8 bits.

    Attributes:
        low, high: bounds that the layer has whose place this takes: 0 and 6 of ReLU6, 0 and infinity of ReLU.
        grid: the `scheme.Grid`; None where the bounds do not give it and `calibrate` has not been called.
        seen: while observing, the smallest and the largest number that came; else None.

    Raises:
        RuntimeError: forward without a grid.
    """

    def __init__(self, low=-math.inf, high=math.inf):
        self.low, self.high = low, high
        self.grid: Grid | None = grid_of(low, high) if math.isfinite(high - low) else None
        self.seen: tuple | None = None

    @property
    def step(self):
        """The grid's step."""
        if self.grid is None:
            raise RuntimeError(f"{self.name}: the range of its numbers is not known: show it pictures by calibrate(…)")
        return self.grid.step

    def pair(self, kind):
        """(QUANT.1), (QUANT.2) and (QUANT.7)."""
        return QUANTIZE

    def forward(self, x):
        """Compute x̂; while observing, only what the rectifier does whose place this has."""
        self.require(x)
        if self.seen is not None:
            y = x if self.low == -math.inf else x.clip(self.low, self.high)
            self.seen = min(self.seen[0], float(y.min())), max(self.seen[1], float(y.max()))
            return y
        self.step  # noqa: B018 (raises where there is none)
        y, cache = quantize_forward(x, self.grid)
        self.save_cache(cache, y)
        return y

    def backward(self, dy):
        """Return dx, straight through."""
        return quantize_backward(dy, self.take_cache(dy))

    def extra_repr(self):  # noqa: D102
        return "" if self.grid is None else f"step={self.grid.step:.6g}, zero={self.grid.zero}"


class _Rounded:
    """Rounds weight and bias on the way into forward; their gradients go straight through.

    Attributes:
        grids: the `Quantize` before, and the one behind or None; a tuple, since they are no parts of the layer.
    """

    grids: Any = (None, None)

    def multiplied(self):
        """ŵ and b̂; while ranges are looked for, weight and bias as they are."""
        weight, bias = super().multiplied()  # type: ignore[misc]
        before, behind = self.grids
        if before.seen is not None:
            return weight, bias
        return quantized(weight, bias, before.step, behind.step if behind else 1.0)


class QuantizedConv2d(_Rounded, Conv2d):
    """A convolution whose weight and bias are rounded."""


class QuantizedLinear(_Rounded, Linear):
    """A linear layer whose weight and bias are rounded."""


def quantize(model, batches):
    """`prepare`, then `calibrate`: a trained network -> a copy on grids of 8 bits, in eval mode.

    Args:
        model: a network on the CPU of convolutions, batch norms behind them, ReLU6 or ReLU, shortcuts, global average
            pooling and linear layers.
        batches: (x, labels) pairs to see ranges in; some hundred training pictures will do.

    Raises:
        ValueError: it has a layer that there are no 8 bits for, or no batch came.
    """
    return calibrate(prepare(model), batches)


def prepare(model):
    """A copy of a network, with batch norm folded, that rounds; its grids but those behind ReLU6 are not known yet.

    Raises:
        ValueError: it has a layer that there are no 8 bits for; the message names it.
    """
    folded = fold_batch_norm(model)
    chain = [(name, layer) for name, layer in folded.chain() if isinstance(layer, Module)]
    products = [name for name, layer in chain if isinstance(layer, (Conv2d, Linear))]
    if not products:
        raise ValueError(f"{folded.name}: there is no convolution and no linear layer in it to quantize")
    rectified = {name for (name, _), (_, after) in pairwise(chain) if type(after) in (ReLU, ReLU6)}
    whole = _rebuilt(folded, "", rectified | set(products[-1:]))  # the logits are compared, not fed into a product
    children = dict(whole.named_children()) if type(whole) is Sequential else {"0": whole}
    prepared = Sequential({f"input_{GRID}": Quantize(), **children}).eval()
    before = None
    for (_, layer), (_, after) in pairwise([*prepared.chain(), ("", None)]):
        if isinstance(layer, Quantize):
            before = layer
        elif isinstance(layer, _Rounded):
            layer.grids = before, after if isinstance(after, Quantize) else None
    return prepared


def calibrate(prepared, batches):
    """Set the grids that are not known yet by what is seen in some pictures. Returns the network, in eval mode.

    Args:
        prepared: what `prepare` made.
        batches: (x, labels) pairs.

    Raises:
        ValueError: there is no batch.
    """
    grids = [layer for _, layer in prepared.named_modules() if isinstance(layer, Quantize)]
    prepared.eval()
    for layer in grids:
        layer.seen = math.inf, -math.inf
    try:
        for x, _ in batches:
            prepared(to_device(x, "cpu"))
        if grids[0].seen == (math.inf, -math.inf):
            raise ValueError("calibrate: no batch came, expected some pictures to see ranges in")
        for layer in grids:
            if not math.isfinite(layer.high):
                layer.grid = grid_of(*(layer.seen or (0, 0)))
    finally:
        for layer in grids:
            layer.seen = None
    _snap(prepared)
    return prepared


def _snap(prepared):
    """Move steps until those of a shortcut and of a mean have quotients of the form (QUANT.6)."""
    forks: list = []
    here: Any = None
    for (_, layer), (_, after) in pairwise(list(prepared.chain())):
        if isinstance(layer, Quantize):
            here = layer
        elif isinstance(layer, Mark) and layer.place == "open":
            forks.append(here)
        elif isinstance(layer, Mark):
            first = forks.pop().step
            _set_step(after, first / snapped(first / after.step))
            _set_step(here, snapped(here.step / after.step) * after.step)
        elif isinstance(layer, GlobalAvgPool2d):
            _set_step(after, here.step / snapped(here.step / after.step))


def _set_step(layer, step):
    layer.grid = layer.grid._replace(step=float(step))


def _rebuilt(module, name, finished):
    """The module that rounds. `finished`: the layers behind whose output no grid is wanted."""
    if type(module) in (ReLU, ReLU6):
        return Quantize(0.0, 6.0 if type(module) is ReLU6 else math.inf)
    if type(module) in (Conv2d, Linear):
        made = object.__new__(QuantizedConv2d if type(module) is Conv2d else QuantizedLinear)
        vars(made).update(vars(module))
        return made
    branched = isinstance(module, Branches)
    shortcut = isinstance(module, Residual) and not module.branches()[0] and not module.behind()
    if isinstance(module, Sequential) and type(module).forward is Sequential.forward and shortcut == branched:
        children = {}
        for key, child in module.named_children():
            path = f"{name}.{key}" if name else key
            if type(child) is not Dropout:  # which does nothing in a network that is done
                children[key] = _rebuilt(child, path, finished)
            product = isinstance(child, (Conv2d, Linear, GlobalAvgPool2d)) and path not in finished
            if product or isinstance(child, Residual):
                children[f"{key}_{GRID}"] = Quantize()
        return (Residual if shortcut else Sequential)(children)
    if type(module) in (GlobalAvgPool2d, Flatten):
        return module
    raise ValueError(f"{name} {module.name}: cannot be computed in {LEVELS.bit_length()} bits here")
