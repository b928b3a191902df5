"""Is a backward the derivative of its forward? Asked twelve digits deep.

Take L = Σ dy · f(x), with a random dy: every wrong term then shows, while with dy = 1 many cancel. Backward claims ∂L/∂x.

The numeric derivative that it is held to comes from a complex step, which is exact to rounding, or from differences, for
code that cannot compute on complex numbers (`probe.py` derives both).

Adjoint test: backward is the transpose of the derivative J, so for any direction v and any dy
    ⟨dy, J v⟩ = ⟨Jᵀ dy, v⟩                                                                (ADJOINT.1)
One forward, with J v by a step in direction v, tests all inputs and parameters at once.

All this happens at random parameters: with the gain of 1 that it starts with, the layer below would pass with `return dy`.

A layer of your own needs nothing but `Module`; this one is whole:

    class Scale(sn.Module):
        def __init__(self, channels):
            self.gain = sn.Parameter(np.ones(channels, np.float32))

        def forward(self, x):                               # (N, C, H, W)
            y = self.gain.data[:, None, None] * x
            self.save_cache(x, y)
            return y

        def backward(self, dy):
            x = self.take_cache(dy)
            self.gain.grad += (dy * x).sum(axis=(0, 2, 3))
            return self.gain.data[:, None, None] * dy

    print(sn.gradcheck(Scale(3), np.random.default_rng(0).standard_normal((2, 3, 4, 5))))

A gradient check proves that backward fits forward. It never proves forward: that takes an oracle (`reference.py`).
"""

import numpy as np

from scratchnet.gradcheck.network import first_wrong, inputs
from scratchnet.gradcheck.point import move
from scratchnet.gradcheck.probe import METHODS, Probe
from scratchnet.gradcheck.report import GradcheckReport, GradientMismatch, NotComplex, Row, describe, not_complex

DIRECTIONS = 8
FLOOR = 1e-3  # an array whose gradients are all 0 but for rounding is judged by this fraction of the largest gradient
DRAWS = 5  # a drawn network may have a kink within a difference's step: a mismatch must persist in as many draws


def gradcheck(module, x, *, method="complex-step", rng=None, rtol=None, samples=None):
    """Check backward against the derivative of forward, at x, for x and every parameter, in the module's current mode.

    Of frozen parameters (`requires_grad = False`) nothing is checked. x is, through all layers, where a step ends above.

    The check works on a float64 copy, at random parameters and buffers of the size of the module's own (`point.py`): the
    module, its gradients and its generators stay as they are. Every forward starts from the same generator state and
    buffers, so that dropout draws one mask.

    Args:
        module: a `Module`, or a pair of functions (forward, backward) with `forward(*x) -> (y, cache)` and
            `backward(dy, cache) -> dx`, one gradient for each array of x.
        x: the input, at least a step away from kinks; for a pair a tuple where it takes several arrays. It is taken as it
            is, all arrays of a pair too: draw them, since zeros and ones hide what they multiply.
        method: "complex-step", "finite-difference" or "four-point".
        rng: numpy.random.Generator of the parameters, upstream gradients and directions; default_rng(0) if None.
        rtol: largest error allowed, relative to the largest gradient of the same array; 1e-12, 1e-7 and 1e-9 by method.
        samples: check only so many elements of each array, drawn at random; None checks all.

    Returns:
        A report that prints as a table.

    Raises:
        GradientMismatch: a gradient is wrong, x or dy was changed, or a gradient was assigned where it must be added. Of a
            network the layers are then checked one by one, from the last one back, and the first wrong one is named.
        TypeError: forward cannot compute on complex numbers, or loses their imaginary part; differences can check it.
        ValueError: an unknown method; a layer in a plain list, which the module does not know as its own.
    """
    if method not in METHODS:
        raise ValueError(f"gradcheck: method must be one of {', '.join(METHODS)}, got {method!r}")
    rng = np.random.default_rng(0) if rng is None else rng
    rtol = METHODS[method][0] if rtol is None else rtol
    for draw in range(1, DRAWS + 1):
        probe = Probe(module, x)
        if not isinstance(module, tuple):
            move(probe, rng)
        try:
            return _check(probe, method, rng, rtol, samples)
        except (GradientMismatch, NotComplex) as error:
            if method == "complex-step" or draw == DRAWS:
                raise type(error)(_blame(error, probe, method, rng, rtol, samples)) from error.__cause__


def _blame(error, probe, method, *options):
    """The error's message, and what there is to say of a network's layers."""

    def check(layer, x, title):
        """Complex steps first: a layer's x is often on a kink (0 behind a rectifier), which only differences straddle."""
        for each in dict.fromkeys(("complex-step", method)):
            try:
                _check(Probe(layer, x, title), each, *options)
            except GradientMismatch as error:
                return error
            except NotComplex as error:
                if each == method:
                    return error
            else:
                return None

    if not inputs(probe.module, probe.x):
        return str(error)
    wrong = first_wrong(probe.module, probe.x, check)
    if isinstance(error, NotComplex) and isinstance(wrong, NotComplex):
        return f"{probe.title}: {wrong}"
    if wrong:
        return f"{error} The first wrong layer, from the last one back: {wrong}"
    kink = "" if method == "complex-step" else ", or is a kink within the difference's step"
    return f"{error} Each of its layers is right alone: is it how {probe.title} joins them{kink}?"


def _check(probe, method, rng, rtol, samples):
    """Compare every array, and make the adjoint test; returns the report."""
    dy = rng.standard_normal(probe.forward().shape)
    analytic = probe.gradients(dy)

    numeric: dict = {}
    chosen: dict = {}
    for name, value in probe.arrays().items():
        everywhere = list(np.ndindex(value.shape))
        some = samples is not None and samples < len(everywhere)
        chosen[name] = rng.permutation(len(everywhere))[:samples] if some else range(len(everywhere))
        chosen[name] = [everywhere[k] for k in chosen[name]]
        numeric[name] = np.array([probe.derivative({name: _unit(value, k)}, dy, method) for k in chosen[name]])

    floor = max(FLOOR * max(np.abs(values).max() for values in numeric.values()), probe.noise(dy, method) / rtol)
    rows = []
    for name, where in chosen.items():
        claimed = np.array([analytic[name][k] for k in where])
        scale = max(np.abs(numeric[name]).max(), floor)
        error = np.abs(claimed - numeric[name])
        bad = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
        worst = 0.0 if not error[bad] else error[bad] / scale if scale else np.inf
        rows.append(Row(name, analytic[name].shape, len(where), worst, where[bad]))
        if not error[bad] <= rtol * scale:
            direction = {name: _unit(probe.arrays()[name], where[bad])}
            doubt = _doubt(probe, direction, dy, method, claimed[bad], numeric[name][bad])
            raise GradientMismatch(describe(probe.title, rows[-1], claimed, numeric[name], bad, rtol) + doubt)
    rows.append(_adjoint_test(probe, method, rng, rtol))
    return GradcheckReport(probe.title, method, rtol, rows)


def _doubt(probe, direction, dy, method, claimed, numeric):
    """Ask a central difference who is right, backward or the complex step; returns what to add where it is neither.

    Raises:
        NotComplex: backward is right, so that the complex step went wrong.
    """
    gap = abs(claimed - numeric)
    if method != "complex-step" or not 1e-6 * max(abs(claimed), abs(numeric)) < gap < np.inf:
        return ""  # a difference is not as exact as that
    difference = probe.derivative(direction, dy, "finite-difference")
    if abs(difference - claimed) <= 1e-2 * gap:
        raise not_complex(probe.title, "a difference agrees with backward, the complex step does not")
    if abs(difference - numeric) <= 1e-2 * gap:
        return ""
    return (
        f" A difference gives {difference:.15g}, neither of the two: if forward uses np.abs or another function that is "
        "not complex-differentiable, use method='finite-difference'."
    )


def _adjoint_test(probe, method, rng, rtol):  # (ADJOINT.1)
    """⟨dy, J v⟩ = ⟨Jᵀ dy, v⟩ in several directions, each with a dy of its own."""
    worst = 0.0
    for _ in range(DIRECTIONS):
        direction = {name: rng.standard_normal(value.shape) for name, value in probe.arrays().items()}
        length = sum((v * v).sum() for v in direction.values()) ** 0.5  # a difference wants a short step in all
        direction = {name: v / length for name, v in direction.items()}
        dy = rng.standard_normal(probe.forward().shape)
        gradients = probe.gradients(dy)
        forwards = probe.derivative(direction, dy, method)  # ⟨dy, J v⟩
        backwards = sum((gradients[name] * v).sum() for name, v in direction.items())  # ⟨Jᵀ dy, v⟩
        size = sum((gradient * gradient).sum() for gradient in gradients.values()) ** 0.5
        size = max(size, probe.noise(dy, method) / rtol)
        error = abs(backwards - forwards) / size if size else abs(forwards)
        if not error <= rtol:
            doubt = _doubt(probe, direction, dy, method, backwards, forwards)
            raise GradientMismatch(
                f"{probe.title}: adjoint test failed: "
                f"⟨dy, J v⟩ = {forwards:.15g} but ⟨Jᵀ dy, v⟩ = {backwards:.15g}{doubt}"
            )
        worst = max(worst, error)
    return Row("adjoint test", (), DIRECTIONS, worst, ())


def _unit(value, index):
    unit = np.zeros(value.shape)
    unit[index] = 1
    return unit
