"""Is a backward the derivative of its forward? Asked twelve digits deep.

Take L = Σ dy · f(x), with a random dy: every wrong term then shows, while with dy = 1 many cancel. Backward claims ∂L/∂x.

The numeric derivative that it is held to comes from a complex step, which is exact to rounding, or from differences, for
code that cannot compute on complex numbers (`probe.py` derives both).

Adjoint test: backward is the transpose of the derivative J, so for any direction v and any dy
    ⟨dy, J v⟩ = ⟨Jᵀ dy, v⟩                                                                (ADJOINT.1)
One forward, with J v by a step in direction v, tests all inputs and parameters at once.

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

from scratchnet.gradcheck.probe import METHODS, Probe
from scratchnet.gradcheck.report import GradcheckReport, GradientMismatch, Row, describe

DIRECTIONS = 8
FLOOR = 1e-3  # an array whose gradients are all 0 but for rounding is judged by this fraction of the largest gradient


def gradcheck(module, x, *, method="complex-step", rng=None, rtol=None, samples=None):
    """Check backward against the derivative of forward, at x, for x and every parameter, in the module's current mode.

    The check works on a float64 copy: the module, its gradients and its generators stay as they are. Dropout is handled by
    giving every forward the generator state of the first.

    Args:
        module: a `Module`, or a pair of functions (forward, backward) with `forward(*x) -> (y, cache)` and
            `backward(dy, cache) -> dx`, one gradient for each array of x.
        x: the input, at least a step away from kinks; for a pair a tuple where it takes several arrays.
        method: "complex-step", "finite-difference" or "four-point".
        rng: numpy.random.Generator of the upstream gradients and directions; default_rng(0) if None.
        rtol: largest error allowed, relative to the largest gradient of the same array; 1e-12, 1e-7 and 1e-9 by method.
        samples: check only so many elements of each array, drawn at random; None checks all.

    Returns:
        A report that prints as a table.

    Raises:
        GradientMismatch: a gradient is wrong, x or dy was changed, or a gradient was assigned where it must be added.
        TypeError: forward cannot compute on complex numbers, or loses their imaginary part; differences can check it.
        ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"gradcheck: method must be one of {', '.join(METHODS)}, got {method!r}")
    rng = np.random.default_rng(0) if rng is None else rng
    rtol = METHODS[method][0] if rtol is None else rtol
    probe = Probe(module, x)
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
            if method == "complex-step" and _agrees(probe, name, where[bad], dy, claimed[bad], numeric[name][bad]):
                raise TypeError(
                    f"{probe.title} cannot compute on complex numbers (its forward loses the imaginary part: abs? .real?), "
                    "and a difference agrees with backward: use method='finite-difference'"
                )
            raise GradientMismatch(describe(probe.title, rows[-1], claimed, numeric[name], bad, rtol))
    rows.append(_adjoint_test(probe, rng, method, rtol))
    return GradcheckReport(probe.title, method, rtol, rows)


def _agrees(probe, name, index, dy, claimed, numeric):
    """Whether a central difference sides with backward against the complex step: then it is the step that went wrong."""
    difference = probe.derivative({name: _unit(probe.arrays()[name], index)}, dy, "finite-difference")
    return bool(
        abs(difference - claimed) <= 1e-5 * abs(claimed - numeric) and abs(claimed - numeric) > 1e-3 * abs(claimed)
    )


def _adjoint_test(probe, rng, method, rtol):  # (ADJOINT.1)
    """⟨dy, J v⟩ = ⟨Jᵀ dy, v⟩ in several directions, each with a dy of its own."""
    worst = 0.0
    for _ in range(DIRECTIONS):
        direction = {name: rng.standard_normal(value.shape) for name, value in probe.arrays().items()}
        length = sum((v * v).sum() for v in direction.values()) ** 0.5  # a difference wants a short step in all
        direction = {name: v / length for name, v in direction.items()}
        dy = rng.standard_normal(probe.forward().shape)
        gradients = probe.gradients(dy)
        forwards = probe.derivative(direction, dy, method)  # ⟨dy, J v⟩
        terms = np.array([(gradients[name] * v).sum() for name, v in direction.items()])  # ⟨Jᵀ dy, v⟩
        size = sum((gradient * gradient).sum() for gradient in gradients.values()) ** 0.5
        size = max(size, probe.noise(dy, method) / rtol)
        error = abs(terms.sum() - forwards) / size if size else abs(forwards)
        if not error <= rtol:
            raise GradientMismatch(
                f"{probe.title}: adjoint test failed: ⟨dy, J v⟩ = {forwards:.15g} but ⟨Jᵀ dy, v⟩ = {terms.sum():.15g}"
            )
        worst = max(worst, error)
    return Row("adjoint test", (), DIRECTIONS, worst, ())


def _unit(value, index):
    unit = np.zeros(value.shape)
    unit[index] = 1
    return unit
