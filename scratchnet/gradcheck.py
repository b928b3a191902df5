"""Is a backward the derivative of its forward? Asked twelve digits deep.

Take L = Σ dy · f(x), with a random dy: every wrong term then shows, while with dy = 1 many cancel. Backward claims ∂L/∂x.

Complex step (Squire and Trapp 1998): for an analytic f and a tiny h,
    f(x + ih) = f(x) + ih f'(x) - …      so      f'(x) = Im f(x + ih) / h                    (CHECK.1)
Nothing is subtracted, so nothing cancels, h can be 1e-20, and the result is exact to rounding. The layers' functions take
complex numbers for this reason alone.

Differences, for an f that is not analytic code, pay for the subtraction:
    central      f'(x) ≈ (f(x + h) - f(x - h)) / 2h                            error ~ h²    (CHECK.2)
    four points  f'(x) ≈ (8 f(x + h) - 8 f(x - h) - f(x + 2h) + f(x - 2h)) / 12h     ~ h⁴    (CHECK.3)

Adjoint test: backward is the transpose of the derivative J, so for any direction v and any dy
    ⟨dy, J v⟩ = ⟨Jᵀ dy, v⟩                                                                  (CHECK.4)
One forward, with J v by (CHECK.1), tests all inputs and parameters at once.

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

import copy
import warnings
from typing import NamedTuple

import numpy as np

from scratchnet.module import Module, Parameter

# method: (default rtol, step as a fraction of the values' size, [(multiple of the step, weight)])
METHODS = {
    "complex-step": (1e-12, 1e-20, [(1j, 1.0)]),
    "finite-difference": (1e-7, 1e-5, [(1, 0.5), (-1, -0.5)]),
    "four-point": (1e-9, 1e-3, [(1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12)]),
}
DIRECTIONS = 8
FLOOR = 1e-3  # an array whose gradients are all 0 but for rounding is judged by this fraction of the largest gradient


class GradientMismatch(AssertionError):
    """Backward and the numeric derivative disagree: the message says where, by how much, and what it looks like."""


class Row(NamedTuple):
    """One array's outcome: its worst relative error, and where."""

    name: str
    shape: tuple
    checked: int
    error: float
    where: tuple


class GradcheckReport(NamedTuple):
    """What was checked, as rows; prints as a table."""

    title: str
    method: str
    rtol: float
    rows: list

    @property
    def worst(self):
        """The largest relative error of all rows."""
        return max(row.error for row in self.rows)

    def __str__(self):
        lines = [f"{self.title}, {self.method}, rtol {self.rtol:.0e}"]
        lines.append(f"  {'name':<36} {'shape':<18} {'checked':>8} {'worst error':>12}  where")
        for row in self.rows:
            where = str(tuple(map(int, row.where))) if row.where else ""
            lines.append(f"  {row.name:<36} {row.shape!s:<18} {row.checked:>8} {row.error:>12.1e}  {where}")
        return "\n".join(lines)


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
        ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"gradcheck: method must be one of {', '.join(METHODS)}, got {method!r}")
    rng = np.random.default_rng(0) if rng is None else rng
    rtol = METHODS[method][0] if rtol is None else rtol
    probe = _Probe(module, x)
    dy = rng.standard_normal(probe.forward().shape)
    analytic = probe.gradients(dy)

    numeric, chosen = {}, {}
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
            raise GradientMismatch(_message(probe.title, rows[-1], claimed, numeric[name], bad, rtol))
    rows.append(_adjoint_test(probe, rng, method, rtol))
    return GradcheckReport(probe.title, method, rtol, rows)


def _adjoint_test(probe, rng, method, rtol):
    """(CHECK.4) in several directions, each with a dy of its own."""
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


class _Probe:
    """A float64 copy of a module at one input, that can be moved a step in any direction."""

    def __init__(self, module, x):
        if isinstance(module, tuple):
            module, x = _Pair(*module, x), x[0] if isinstance(x, tuple) else x
        self.title = module.name
        self.module = copy.deepcopy(module).astype(np.float64)
        for _, part in self.module.named_modules():
            part.saves = True  # in eval mode too: eval(save=True)
        self.x = np.array(x, np.float64)
        self.generators = [v for _, m in self.module.named_modules() for v in vars(m).values() if hasattr(v, "bit_generator")]
        self.states = [generator.bit_generator.state for generator in self.generators]
        self.complex = None

    def arrays(self):
        """Name -> value of everything that has a gradient."""
        return {"x": self.x} | {name: parameter.data for name, parameter in self.module.named_parameters()}

    def forward(self):
        """Y at this point; dropout draws the same masks every time."""
        return self._forward(self.module, self.x)

    def _forward(self, module, x):
        own = [v for _, m in module.named_modules() for v in vars(m).values() if hasattr(v, "bit_generator")]
        for generator, state in zip(own, self.states, strict=True):
            generator.bit_generator.state = state
        return module.forward(x)

    def gradients(self, dy):
        """Name -> what backward says; also that it adds, and leaves x and dy alone."""
        before = self.x.copy(), dy.copy()
        self.module.zero_grad()
        self.forward()
        dx = self.module.backward(dy)
        once = {"x": dx.copy()} | {name: p.grad.copy() for name, p in self.module.named_parameters()}
        largest = max(np.abs(np.nan_to_num(gradient)).max() for gradient in once.values())  # (a + b) + a + b rounds
        self.forward()
        self.module.backward(dy)
        for name, now, then in (("x", self.x, before[0]), ("dy", dy, before[1])):
            if not np.array_equal(now, then, equal_nan=True):
                raise GradientMismatch(f"{self.title}: {name} was changed in place: compute on an array of your own")
        for name, parameter in self.module.named_parameters():
            if not np.allclose(parameter.grad, 2 * once[name], rtol=0, atol=1e-12 * largest, equal_nan=True):
                raise GradientMismatch(
                    f"{self.title}: {name}.grad is not twice as large after a second backward: "
                    "backward must add to it (`+=`) and give the same gradient for the same input"
                )
        return once

    def derivative(self, direction, dy, method):
        """⟨dy, J v⟩ for a direction v, given as name -> array."""
        _, fraction, stencil = METHODS[method]
        size = max(1.0, max(np.abs(self.arrays()[name]).max() for name in direction))
        step = fraction if method == "complex-step" else fraction * size
        total = 0.0
        for multiple, weight in stencil:
            total += weight * (dy * self._moved(direction, multiple * step)).sum()
        return total / step

    def noise(self, dy, method):
        """What rounding alone does to a difference: the loss has an error of eps·|loss|, and it is divided by the step."""
        if method == "complex-step":
            return 0.0
        return 4 * np.finfo(float).eps * np.abs(dy * self.forward()).sum() / METHODS[method][1]

    def _moved(self, direction, step):
        """Y at this point + step·direction: its imaginary part for an imaginary step (CHECK.1)."""
        imaginary = isinstance(step, complex)
        if imaginary and self.complex is None:
            self.complex = copy.deepcopy(self.module).astype(np.complex128)
        module = self.complex if imaginary else self.module
        parameters = dict(module.named_parameters())
        x = self.x + 0j if imaginary else self.x
        x = x + step * direction["x"] if "x" in direction else x
        kept = {name: parameters[name].data.copy() for name in direction if name != "x"}
        for name in kept:
            parameters[name].data[...] += step * direction[name]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", np.exceptions.ComplexWarning)
                y = self._forward(module, x)
        except (TypeError, np.exceptions.ComplexWarning) as error:
            if imaginary:
                raise TypeError(f"{self.title} cannot compute on complex numbers ({error}): use method='finite-difference'") from error
            raise
        finally:
            for name, value in kept.items():
                parameters[name].data[...] = value
        return y.imag if imaginary else y


class _Pair(Module):
    """A pair of functions as a module: the arrays after the first are its parameters."""

    def __init__(self, forward, backward, x):
        self._forward, self._backward = forward, backward
        self._name = getattr(forward, "__name__", "pair")
        for k, value in enumerate(x[1:] if isinstance(x, tuple) else (), 1):
            setattr(self, f"x{k}", Parameter(np.array(value, np.float64)))

    @property
    def name(self):
        return self._name

    def forward(self, x):
        y, cache = self._forward(x, *(parameter.data for parameter in self.parameters()))
        self.save_cache(cache, y)
        return y

    def backward(self, dy):
        dx = self._backward(dy, self.take_cache(dy))
        dx, *rest = dx if isinstance(dx, tuple) else (dx,)
        for parameter, gradient in zip(self.parameters(), rest, strict=True):
            parameter.grad += gradient
        return dx


def _unit(value, index):
    unit = np.zeros(value.shape)
    unit[index] = 1
    return unit


def _message(title, row, claimed, numeric, bad, rtol):
    got, want = claimed[bad], numeric[bad]
    index = tuple(map(int, row.where))
    return (
        f"{title}: the gradient of {row.name} {row.shape} is wrong at {index}: backward says {got:.15g}, the numeric derivative "
        f"is {want:.15g} (ratio {got / want if want else np.inf:.6g}, error {row.error:.1e} of the largest, allowed {rtol:.0e}). "
        f"{_hint(claimed, numeric)}"
    )


def _hint(claimed, numeric):
    """What the mismatch looks like: the usual culprits."""
    if not np.isfinite([claimed, numeric]).all():
        return "Not every element is finite: a division by 0, or an overflow?"
    if not claimed.any():
        return "It is 0 everywhere: not connected, or never added to .grad?"
    if np.allclose(claimed, -numeric, rtol=1e-6, atol=0):
        return "Only the sign is wrong."
    ratio = (claimed * numeric).sum() / (numeric * numeric).sum() if numeric.any() else np.nan
    if abs(ratio - 1) < 1e-6:
        return "It is right but for rounding: is rtol below what this depth allows?"
    if np.allclose(claimed, ratio * numeric, rtol=1e-6, atol=1e-9 * np.abs(claimed).max()):
        return f"Every element is {ratio:.6g} times too large: mean or sum? counted twice?"
    if np.allclose(np.sort(claimed, axis=None), np.sort(numeric, axis=None), rtol=1e-6):
        return "The same numbers stand in other places: transposed, flipped or shifted?"
    wrong = np.count_nonzero(~np.isclose(claimed, numeric, rtol=1e-6, atol=1e-9 * np.abs(numeric).max()))
    return f"{wrong} of {claimed.size} elements differ: is a term missing, or a border treated differently?"
