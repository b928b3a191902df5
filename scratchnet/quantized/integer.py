"""A network on whole numbers alone, made of a simulated one (simulated.py): weights of 8 bits, activations of 8 bits.

Let hats stand for the real numbers behind whole ones (scheme.py): x̂ = s_x (q_x - z_x), ŵ = s_o q_w. A product of a
convolution or a linear layer is then a sum of products of whole numbers, times one real number:
    Σ ŵ x̂ + b̂ = s_o s_x acc,    acc = Σ q_w (q_x - z_x) + q_b                               (INT.1)
To bring it to the next grid is to multiply by M = s_o s_x / s_y, which is m 2⁻ⁿ, known beforehand (QUANT.6):
    q_y = clip(⌊M acc + ½⌋ + z_y, 0, 255),    ⌊M acc + ½⌋ = (acc m + 2ⁿ⁻¹) >> n             (INT.2)
A shortcut adds numbers of two grids, each with an M of its own, brought to the larger n of both:
    q_y = clip(((q_a - z_a) m_a + (q_b - z_b) m_b + 2ⁿ⁻¹) >> n + z_y, 0, 255)               (INT.3)
A mean over H·W pixels is a sum, with the division in its M:
    acc = Σ (q_x - z_x),    M = s_x / (H W s_y)                                             (INT.4)
Logits need no grid: they are acc m, at the same n for all classes                           (INT.5)

acc fits into 32 bits and acc m into 64. From the pictures' grid to the logits nothing is a float.

Source: Jacob et al. 2018, §2.2-2.4 (their m has 31 bits; with 24, a simulation in float64 can follow).
"""

from typing import Any, NamedTuple

import numpy as np

from scratchnet.array import as_images, as_maps
from scratchnet.layers.conv import Conv2d, depthwise_forward, grouped_forward, pointwise_forward
from scratchnet.layers.join import Mark
from scratchnet.layers.linear import Flatten
from scratchnet.layers.pool import GlobalAvgPool2d
from scratchnet.module import Module
from scratchnet.quantized.scheme import LEVELS, Grid, bias_numbers, multiplier, row_numbers, row_steps
from scratchnet.quantized.simulated import Quantize


class Product(NamedTuple):
    """A convolution, or a linear layer as a 1×1 convolution of one pixel.

    weight (O, C/groups, KH, KW) int8, bias (O,) int32; m, n (O,) as in (INT.2); x, y: the grids, y None for the logits.
    """

    name: str
    weight: np.ndarray
    bias: np.ndarray
    m: np.ndarray
    n: np.ndarray
    geometry: tuple
    groups: int
    path: str
    x: Grid
    y: Grid | None

    def run(self, q):
        """q (C, H, W, N) -> (O, OH, OW, N)."""
        seen, weight = q - np.int32(self.x.zero), self.weight.astype(np.int32)
        if self.path == "pointwise":
            acc = pointwise_forward(seen, weight, self.geometry[0])
        elif self.path == "depthwise":
            acc = depthwise_forward(seen, weight, *self.geometry)
        else:
            options = *self.geometry, self.groups
            acc = grouped_forward(seen, weight, *options)
        acc += self.bias[:, None, None, None]  # (INT.1)
        m, n = (values[:, None, None, None] for values in (self.m, self.n))
        return acc * m if self.y is None else on(rounded(acc * m, n), self.y)  # (INT.5), (INT.2)


class Mean(NamedTuple):
    """The mean of each channel of each picture."""

    x: Grid
    y: Grid

    def run(self, q):
        """q (C, H, W, N) -> (C, 1, 1, N)."""
        acc = (q - np.int32(self.x.zero)).sum(axis=(1, 2), keepdims=True)
        m, n = multiplier(self.x.step / (q.shape[1] * q.shape[2]) / self.y.step)  # (INT.4)
        return on(rounded(acc * m, n), self.y)


class Fork(NamedTuple):
    """Where a shortcut begins: q is handed on, and kept."""

    def run(self, q):
        """The same q."""
        return q


class Join(NamedTuple):
    """Where a shortcut ends: the sum of what was kept, on grid a, and what came, on grid b."""

    a: Grid
    b: Grid
    y: Grid

    def run(self, q, kept):
        """Both (C, H, W, N)."""
        (m_a, n_a), (m_b, n_b) = (multiplier(grid.step / self.y.step) for grid in (self.a, self.b))
        n = max(n_a, n_b)
        total = (kept - self.a.zero) * (m_a << (n - n_a)) + (q - self.b.zero) * (m_b << (n - n_b))
        return on(rounded(total, n), self.y)  # (INT.3)


def rounded(total, n):
    """⌊total 2⁻ⁿ + ½⌋ of int64."""
    return (total + (np.int64(1) << (n - 1))) >> n


def on(numbers, grid):
    """Whole numbers from a grid's zero point, clipped to the grid: int32."""
    return (numbers + grid.zero).clip(0, LEVELS).astype(np.int32)


class IntegerNetwork(Module):
    """A network in 8 bits for inference on a CPU: pictures (N, C, H, W) -> logits (N, K), floats like the pictures.

    Attributes:
        start: the grid that the pictures are put on.
        parts: what is computed, in order.

    Args:
        simulated: what `quantize` made.

    Raises:
        ValueError: it is something else, or a sum of products might not fit into 32 bits.
    """

    def __init__(self, simulated):
        self.start, self.parts = _parts(simulated)

    def forward(self, x):
        """Compute the logits."""
        self.require(x, "N", "C", "H", "W")
        whole = self.numbers(self.start.numbers(as_maps(x).astype(np.float64)).astype(np.int32))[-1]
        logits = np.ldexp(whole.reshape(-1, x.shape[0]).astype(np.float64), -int(self.parts[-1].n[0]))
        return as_images(logits.astype(x.dtype))  # (K, N)

    def numbers(self, q):
        """What each part makes of the pictures' whole numbers q (C, H, W, N) int32, the logits' last."""
        found, kept = [q], []
        for part in self.parts:
            if isinstance(part, Fork):
                kept.append(found[-1])
            else:
                found.append(part.run(found[-1], *([kept.pop()] if isinstance(part, Join) else [])))
        return found

    @property
    def nbytes(self):
        """Bytes of weights, biases and multipliers: 1 a weight, 4 + 4 + 1 a channel."""
        return sum(part.weight.size + 9 * len(part.weight) for part in self.parts if isinstance(part, Product))


def _parts(simulated):
    """The pictures' grid, and the parts of an `IntegerNetwork`."""
    chain = [(name, layer) for name, layer in simulated.chain() if not isinstance(layer, Flatten)]
    if not chain or not isinstance(chain[0][1], Quantize):
        raise ValueError(f"IntegerNetwork: expected what quantize(…) makes, got {simulated.name}")
    start: Any = chain[0][1].grid
    parts: list = []
    forks: list = []
    grid, at = start, 1
    while at < len(chain):
        name, layer = chain[at]
        if isinstance(layer, Mark) and layer.place == "open":
            forks.append(grid)
            parts.append(Fork())
            at += 1
            continue
        after: Any = chain[at + 1][1].grid if at + 1 < len(chain) else None
        if isinstance(layer, Mark):
            parts.append(Join(forks.pop(), grid, after))
        elif isinstance(layer, GlobalAvgPool2d):
            parts.append(Mean(grid, after))
        else:
            parts.append(_product(name, layer, grid, after))
        grid, at = after, at + 2
    return start, parts


def _product(name, layer, x, y):
    """The `Product` of a layer between two grids."""
    weight, steps = layer.weight.data, row_steps(layer.weight.data, x.step, y.step if y else 1.0)
    numbers = row_numbers(weight, steps).reshape(*weight.shape, *[1] * (4 - weight.ndim))  # (O, F) -> (O, F, 1, 1)
    bias = bias_numbers(layer.bias.data, steps, x.step) if layer.bias else np.zeros(len(weight))
    most = (np.abs(numbers).reshape(len(numbers), -1).sum(axis=1) * LEVELS + np.abs(bias)).max()
    if most >= 1 << 31:
        raise ValueError(f"{name} {layer.name}: its sums may come to {most:.3g}, which 32 bits do not hold")
    m, n = multiplier(steps * x.step / (y.step if y else 1.0))
    if y is None:
        m, n = m << (n.max() - n), np.full_like(n, n.max())
    geometry, groups, path = ((1, 1),), 1, "pointwise"
    if isinstance(layer, Conv2d):
        geometry, groups, path = layer.geometry, layer.groups, layer.path
    return Product(name, numbers.astype(np.int8), bias.astype(np.int32), m, n, geometry, groups, path, x, y)
