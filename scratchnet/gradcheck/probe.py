"""A module at one point, in float64, that can be moved a step in any direction: its numeric derivative.

Complex step (Squire and Trapp 1998): for an analytic f and a tiny h,
    f(x + ih) = f(x) + ih f'(x) - …      so      f'(x) = Im f(x + ih) / h                    (STEP.1)
Nothing is subtracted, so nothing cancels, h can be 1e-200, and the result is exact to rounding. The layers' functions take
complex numbers for this reason alone.
So small an h also makes h² = 0 in float64, and real parts stay what they are without a step: with h = 1e-20 a product of
two stepped numbers, -h² where it was 0, would fall to either side of the kink at 0 that whole dead channels sit on.

Differences, for an f that is not analytic code, pay for the subtraction:
    central      f'(x) ≈ (f(x + h) - f(x - h)) / 2h                            error ~ h²    (STEP.2)
    four points  f'(x) ≈ (8 f(x + h) - 8 f(x - h) - f(x + 2h) + f(x - 2h)) / 12h     ~ h⁴    (STEP.3)
"""

import copy
import warnings

import numpy as np

from scratchnet.gradcheck.network import require_registered
from scratchnet.gradcheck.report import GradientMismatch, not_complex
from scratchnet.module import Module, Parameter
from scratchnet.plan import wanting_dx

# method: (default rtol, step as a fraction of the values' size, [(multiple of the step, weight)])
METHODS: dict[str, tuple] = {
    "complex-step": (1e-12, 1e-200, [(1j, 1.0)]),  # (STEP.1)
    "finite-difference": (1e-7, 1e-5, [(1, 0.5), (-1, -0.5)]),  # (STEP.2)
    "four-point": (1e-9, 1e-3, [(1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12)]),  # (STEP.3)
}


class Probe:
    """A float64 copy of a module at one input, that can be moved a step in any direction."""

    def __init__(self, module, x, title=None):
        if isinstance(module, tuple):
            module, x = _Pair(module[0], module[1], x), x[0] if isinstance(x, tuple) else x
        self.title = title or module.name
        self.module = copy.deepcopy(module).astype(np.float64)
        require_registered(self.module)
        for _, part in self.module.named_modules():
            part.saves = True  # in eval mode too: eval(save=True)
        self.x = np.array(x, np.float64)
        self.states = [generator.bit_generator.state for generator in _generators(self.module)]
        self.buffers = {
            (path, name): np.array(getattr(part, name))
            for path, part in self.module.named_modules()
            for name in part.buffers
        }
        self.complex: Module | None = None

    def parameters(self):
        """Name -> value of every parameter."""
        return {name: parameter.data for name, parameter in self.module.named_parameters()}

    def trained(self):
        """(name, Parameter) of those that are not frozen."""
        return [(name, parameter) for name, parameter in self.module.named_parameters() if parameter.requires_grad]

    def arrays(self):
        """Name -> value of everything that has a gradient: x, and the parameters that are not frozen."""
        return {"x": self.x} | {name: parameter.data for name, parameter in self.trained()}

    def forward(self):
        """y at this point: what a forward changes, generators and buffers, is put back before each."""
        return self._forward(self.module, self.x)

    def _forward(self, module, x):
        for generator, state in zip(_generators(module), self.states, strict=True):
            generator.bit_generator.state = state
        for path, part in module.named_modules():
            for name in part.buffers:
                value = getattr(part, name)
                if isinstance(value, np.ndarray):
                    value[...] = self.buffers[path, name]
                else:  # a forward that counts by `self.count = self.count + 1` makes a number of an array
                    setattr(part, name, self.buffers[path, name].copy())
        return module.forward(x)

    def gradients(self, dy):
        """Name -> what backward says; also that it adds, and leaves x and dy alone."""
        before = self.x.copy(), dy.copy()
        self.module.zero_grad()
        self.forward()
        dx = self._backward(dy)
        if getattr(dx, "shape", None) != self.x.shape:
            got = getattr(dx, "shape", type(dx).__name__)
            raise GradientMismatch(f"{self.title}: backward must return dx of shape {self.x.shape}, got {got}")
        once = {"x": dx.copy()} | {name: p.grad.copy() for name, p in self.trained()}
        largest = max(np.abs(np.nan_to_num(gradient)).max() for gradient in once.values())  # (a + b) + a + b rounds
        self.forward()
        self._backward(dy)
        for name, now, then in (("x", self.x, before[0]), ("dy", dy, before[1])):
            if not np.array_equal(now, then, equal_nan=True):
                raise GradientMismatch(f"{self.title}: {name} was changed in place: compute on an array of your own")
        for name, parameter in self.trained():
            if not np.allclose(parameter.grad, 2 * once[name], rtol=0, atol=1e-12 * largest, equal_nan=True):
                raise GradientMismatch(
                    f"{self.title}: {name}.grad is not twice as large after a second backward: "
                    "backward must add to it (`+=`) and give the same gradient for the same input"
                )
        return once

    def _backward(self, dy):
        with wanting_dx():  # of a network that is frozen in part, too
            return self.module.backward(dy)

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
        """y at this point + step·direction: its imaginary part for an imaginary step (STEP.1)."""
        imaginary = isinstance(step, complex)
        if imaginary and self.complex is None:
            self.complex = copy.deepcopy(self.module).astype(np.complex128)
        module = self.complex if imaginary and self.complex else self.module
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
        except Exception as error:
            if imaginary:  # the same forward took real numbers
                raise not_complex(self.title, error) from error
            raise
        finally:
            for name, value in kept.items():
                parameters[name].data[...] = value
        return y.imag if imaginary else y


def _generators(module):
    return [
        value for _, part in module.named_modules() for value in vars(part).values() if hasattr(value, "bit_generator")
    ]


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
