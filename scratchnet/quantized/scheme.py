"""Numbers in 8 bits: which whole number stands for which real one, and how a network learns to live with that.

A grid of 256 whole numbers, with a step s and a zero point z, stands for real numbers. To the grid and back:
    q = clip(⌊x/s + ½⌋ + z, 0, 255)                                                         (QUANT.1)
    x̂ = s (q - z)                                                                           (QUANT.2)
Between the grid's ends x̂ is off by at most s/2, and 0, which padding and rectifiers are full of, is exact.

An activation that lies in [a, b], with a ≤ 0 ≤ b, has
    s = (b - a)/255,    z = ⌊-a/s + ½⌋                                                      (QUANT.3)
Behind ReLU6 a = 0 and b = 6 whatever the picture, so s = 6/255 and z = 0: there is nothing to measure, and no rare large
number makes the step coarse for all others. That is what the 6 is for. Behind ReLU b is the largest number that some
pictures had.

A weight's rows differ much in size once batch norm is folded into them, so each output channel o has a step of its own.
Its zero point is 0, which saves a term in every product (integer.py):
    s_o = max |w_o| / 127,    q = ⌊w/s_o + ½⌋ in -127 … 127,    ŵ = s_o q                   (QUANT.4)
A bias is added to products of ŵ and x̂, so its step is theirs; 32 bits hold it:
    q_b = ⌊b/(s_o s_x) + ½⌋,    b̂ = s_o s_x q_b                                             (QUANT.5)
From one grid to the next, sums are multiplied by a quotient of steps. Integers can do that where it is of the form
    M = m 2⁻ⁿ,    m odd,    2²³ < m < 2²⁴                                                   (QUANT.6)
So steps are moved until it is, by one part in 2²³ at most: s_o for a product, the step behind it for a shortcut.

Fine-tuning. Rounding is flat nearly everywhere, so its derivative says nothing. The straight-through estimator takes the
derivative of what rounding imitates: of a clip, and for weights and biases, none of which is clipped, of the identity,
    dx = dx̂ where x lies between the grid's ends, else 0                                    (QUANT.7)
    dw = dŵ,    db = db̂                                                                     (QUANT.8)
For a grid of [0, 6], (QUANT.1) and (QUANT.2) do what ReLU6 does, and (QUANT.7) is its own backward (RELU6.2).

Sources: Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam, Kalenichenko 2018, "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", §2.1 and §3; Bengio, Léonard, Courville 2013, §4 (straight-through).
"""

import math
from typing import NamedTuple

import numpy as np

from scratchnet.array import as_images, as_matrix
from scratchnet.device import get_array_module
from scratchnet.kernels import Pair

LEVELS = 255  # steps from one end of an activation's grid to the other: 8 bits
LARGEST = 127  # of a weight's whole numbers, either way
BITS = 24  # of m


class Grid(NamedTuple):
    """The whole numbers 0 … 255 for an activation: `step` from one to the next, `zero` stands for 0."""

    step: float
    zero: int

    @property
    def ends(self):
        """The smallest and the largest number that it stands for."""
        return -self.zero * self.step, (LEVELS - self.zero) * self.step

    def numbers(self, x):
        """The whole numbers of x, in floats."""
        xp = get_array_module(x)
        return xp.clip(xp.floor(x / self.step + 0.5) + self.zero, 0, LEVELS)  # (QUANT.1)


def grid_of(low, high):
    """The `Grid` for numbers from low to high, widened to hold 0; for nothing but 0 it ends at 1."""
    low, high = min(0.0, float(low)), max(0.0, float(high))
    step = (high - low) / LEVELS or 1 / LEVELS
    return Grid(step, math.floor(-low / step + 0.5))  # (QUANT.3)


def quantize_forward(x, grid):
    """To the grid and back: x of any shape (N, C, …) -> x̂ alike, and the cache for `quantize_backward`."""
    rows = as_matrix(x)
    low, high = grid.ends
    y = (grid.numbers(rows) - grid.zero) * grid.step  # (QUANT.2)
    return as_images(y, x), (rows > low) & (rows < high)


def quantize_backward(dy, cache):
    """Straight through `quantize_forward`: dx like dy."""
    return as_images(as_matrix(dy) * cache, dy)  # (QUANT.7)


def multiplier(factors):
    """m and n, whole numbers, with m 2⁻ⁿ the odd multiple next to each factor, a positive number or an array of them."""
    fraction, exponent = np.frexp(factors)
    return np.floor(np.ldexp(fraction, BITS)).astype(np.int64) | 1, BITS - exponent.astype(np.int64)  # (QUANT.6)


def snapped(factors):
    """The factors as `multiplier` has them."""
    m, n = multiplier(factors)
    return np.ldexp(m.astype(np.float64), -n)


def row_steps(weight, x_step, y_step):
    """The step of each output channel: weight (O, …) -> (O,) float64. x_step, y_step: of the grids before and behind."""
    largest = get_array_module(weight).abs(weight.reshape(len(weight), -1)).max(axis=1)
    steps = np.where(largest > 0, largest, 1).astype(np.float64) / LARGEST  # a row of zeros has any
    return snapped(steps * x_step / y_step) * (y_step / x_step)


def row_numbers(weight, steps):
    """The whole numbers of a weight (O, …), in floats."""
    return np.floor(weight / _columns(steps, weight) + 0.5)  # (QUANT.4)


def bias_numbers(bias, steps, x_step):
    """The whole numbers of a bias (O,), in floats."""
    return np.floor(bias / (steps * x_step) + 0.5)  # (QUANT.5)


def quantized(weight, bias, x_step, y_step):
    """ŵ and b̂ of a convolution or a linear layer, in its dtype; a bias of None stays."""
    steps = row_steps(weight, x_step, y_step)
    rounded = row_numbers(weight, steps) * _columns(steps, weight)
    shift = None if bias is None else (bias_numbers(bias, steps, x_step) * (steps * x_step)).astype(weight.dtype)
    return rounded.astype(weight.dtype), shift  # a layer adds their gradients to the parameters' as they are: (QUANT.8)


def _columns(steps, weight):
    return steps.reshape(-1, *[1] * (weight.ndim - 1))


QUANTIZE = Pair(quantize_forward, quantize_backward)
