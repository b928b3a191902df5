"""Optimizers: what a gradient does to its parameter. SGD with momentum, Adam and AdamW, as PyTorch defines them.

In the formulas p is one parameter, g its gradient ∂L/∂p, lr the learning rate, wd the weight decay, t = 1, 2, … the
step. Everything is elementwise, so a slot (a running quantity the optimizer keeps) has the shape of its parameter.

SGD (Sutskever et al. 2013, section 2, in PyTorch's form: the rate scales the velocity, it is not part of it)
    g = g + wd · p            the gradient of the penalty ½ wd p²                  (SGD.1)
    v = momentum · v + g      v starts at 0, so the first v is the first g         (SGD.2)
    d = g + momentum · v      Nesterov: where the next step's momentum will lead   (SGD.3)
    p = p - lr · d            plain momentum takes d = v, no momentum d = g        (SGD.4)

Adam (Kingma and Ba 2015, Algorithm 1)
    g = g + wd · p                                                                (ADAM.1)
    m = β₁ m + (1 - β₁) g     running mean of the gradient                        (ADAM.2)
    s = β₂ s + (1 - β₂) g²    running mean of its square                          (ADAM.3)

    m and s start at 0. With a constant g the sums are m = (1 - β₁ᵗ) g and s = (1 - β₂ᵗ) g², so dividing by those
    factors takes the start's bias away: m / (1 - β₁ᵗ) and s / (1 - β₂ᵗ). With r = √(1 - β₂ᵗ)
    d = m / (√s / r + eps)                                                        (ADAM.4)
    p = p - lr / (1 - β₁ᵗ) · d                                                    (ADAM.5)

    (ADAM.4) divides the penalty in g by √s too: parameters with large gradients hardly decay. That is why

AdamW (Loshchilov and Hutter 2019, Algorithm 2) shrinks p itself, before (ADAM.2)-(ADAM.5) with wd = 0:
    p = p · (1 - lr · wd)                                                         (ADAMW.1)

Weight decay leaves out every parameter whose `decay` is False: batch norm's and biases have no scale to keep small.
"""

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from scratchnet import kernels
from scratchnet.array import to_device
from scratchnet.device import device_of, kind_of, zeros_like
from scratchnet.flat import lay_flat
from scratchnet.module import Parameter
from scratchnet.training.archive import expect


def sgd_update(data, grad, velocity, lr, momentum, nesterov, weight_decay):
    """One step of SGD on one parameter, in place on `data` and `velocity`; `grad` is only read.

    Args:
        data, grad: the parameter and its gradient, of one shape and dtype.
        velocity: the slot v, alike; None without momentum.
        lr, momentum, nesterov, weight_decay: Python scalars, so that float32 stays float32.
    """
    if weight_decay:
        grad = grad + weight_decay * data  # (SGD.1)
    direction = grad
    if velocity is not None:
        velocity *= momentum
        velocity += grad  # (SGD.2)
        direction = grad + momentum * velocity if nesterov else velocity  # (SGD.3)
    data -= lr * direction  # (SGD.4)


def adam_update(data, grad, mean, square, step, lr, betas, eps, weight_decay):
    """One step of Adam on one parameter, in place on `data`, `mean` and `square`; `grad` is only read.

    Args:
        data, grad: the parameter and its gradient, of one shape and dtype.
        mean, square: the slots m and s, alike.
        step: t, from 1.
        lr, betas, eps, weight_decay: Python scalars; eps is in units of the gradient.
    """
    beta1, beta2 = betas
    if weight_decay:
        grad = grad + weight_decay * data  # (ADAM.1)
    mean *= beta1
    mean += (1 - beta1) * grad  # (ADAM.2)
    square *= beta2
    square += (1 - beta2) * (grad * grad)  # (ADAM.3)
    direction = mean / (square**0.5 * (1 / math.sqrt(1 - beta2**step)) + eps)  # (ADAM.4)
    data -= lr / (1 - beta1**step) * direction  # (ADAM.5)


class Group(list):
    """What an update goes over: ((data, grad, *slots), weight decay) for each parameter, or for many that lie side by side.

    Attributes:
        known: what a kernel has found out about these arrays, which stay the same ones as long as the group.
    """

    known: Any = None

    def __reduce__(self):
        """A copy has other arrays, of which nothing is known."""
        return Group, (list(self),)

    def is_still(self, group):
        """Whether the other has the same arrays, in the same order."""
        return len(self) == len(group) and all(
            decay == other_decay and all(map(operator.is_, arrays, others))
            for (arrays, decay), (others, other_decay) in zip(self, group, strict=True)
        )


def sgd_updates(group, lr, momentum, nesterov):
    """`sgd_update` of every parameter of a `Group`."""
    for (data, grad, *velocity), weight_decay in group:
        options = lr, momentum, nesterov, weight_decay
        kernels.run(sgd_update, data, grad, velocity[0] if velocity else None, *options)


def adam_updates(group, step, lr, betas, eps, decoupled):
    """`adam_update` of every parameter of a `Group`; `decoupled`: weight decay is AdamW's."""
    for (data, *arrays), weight_decay in group:
        if decoupled and weight_decay:
            data *= 1 - lr * weight_decay  # (ADAMW.1)
        kernels.run(adam_update, data, *arrays, step, lr, betas, eps, 0.0 if decoupled else weight_decay)


class Optimizer:
    """What the optimizers share: named parameters, slots shaped like them, the step count, and saving all of it.

    A parameter's array is updated in place, never replaced. (On a GPU it moves once, when the optimizer is made: all
    parameters lie in one array then, so that one launch updates them, `flat.py`.)

    Args:
        params: Parameters, or (name, Parameter) pairs as `module.named_parameters()` gives them. The names become
            the keys of the slots; without names these are "0", "1", …
        lr: learning rate, at least 0; set `lr` between steps to follow a schedule.
        weight_decay: at least 0.
        slots: names of the slots.

    Attributes:
        before_step: called with the optimizer before every step, where set: to look at the gradients, or to clip them.
            What it raises keeps the step from happening.

    Raises:
        ValueError: a hyper-parameter out of its range, no parameters, or one of them twice.
    """

    _group: Group | None = None
    before_step: Callable[["Optimizer"], None] | None = None

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float, slots: tuple[str, ...]):
        self.params = _named(params, type(self).__name__)
        self.lr = lr
        self.weight_decay = self._within("weight_decay", weight_decay, math.inf)
        self.steps = 0
        self._flat = lay_flat(self.params)
        self._whole = {slot: zeros_like(self._flat.data) for slot in slots} if self._flat else {}
        self._slots = {
            name: {
                slot: self._flat.view(self._whole[slot], name) if self._flat else zeros_like(p.data) for slot in slots
            }
            for name, p in self.params.items()
        }
        arrays = {name: parameter.data for name, parameter in self.params.items()}
        self._arrays = {name: (type(data), data.dtype, data.shape) for name, data in arrays.items()}

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = self._within("lr", value, math.inf)

    def step(self) -> None:
        """Move every parameter by its gradient as it stands in `parameter.grad`.

        Raises:
            ValueError: a parameter changed its device, dtype or shape since the optimizer was made.
        """
        for name, parameter in self.params.items():
            data = parameter.data
            if (type(data), data.dtype, data.shape) != self._arrays[name] or self._flat not in (None, parameter.home):
                raise ValueError(
                    f"{type(self).__name__}: parameter '{name}' changed its device, dtype or shape since the "
                    f"optimizer was made: make the optimizer after .to() and .astype()"
                )
        if self.before_step:
            self.before_step(self)
        self.steps += 1
        group = Group(self._parts())
        if self._group is None or not self._group.is_still(group):
            self._group = group
        self._update(self._group)

    def state_dict(self) -> dict[str, Any]:
        """Copies of the slots, "slot/parameter name" -> array, and "step" -> int64 array of shape ()."""
        state = {key: slot.copy() for key, slot in self._named_slots()}
        return state | {"step": np.array(self.steps, np.int64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, from NumPy or CuPy arrays alike; nothing changes when it does not fit.

        Raises:
            ValueError: a key is missing or unknown, or an array has another shape or dtype.
        """
        what = f"state of {type(self).__name__}"
        expect(state, self.state_dict(), what)
        if int(state["step"]) < 0:
            raise ValueError(f"{what}: step must be at least 0, got {int(state['step'])}")
        for key, slot in self._named_slots():
            slot[...] = to_device(state[key], device_of(slot))
        self.steps = int(state["step"])

    def _parts(self):
        """What is updated at a time: the entries of a `Group`."""
        if self._flat:
            for part, decay in self._flat.parts:
                arrays = self._flat.data, self._flat.grad, *self._whole.values()
                yield tuple(array[part] for array in arrays), decay * self.weight_decay
        else:
            for name, p in self.params.items():
                yield (p.data, p.grad, *self._slots[name].values()), p.decay * self.weight_decay

    def _update(self, group) -> None:
        raise NotImplementedError

    def _run(self, rule, group, *options) -> None:
        kernels.choose(kernels.Pair(rule), kind_of(group[0][0][0])).forward(group, *options)

    def _named_slots(self) -> Iterator[tuple[str, Any]]:
        for name, slots in self._slots.items():
            for slot, array in slots.items():
                yield f"{slot}/{name}", array

    def _within(self, what: str, value: float, end: float) -> float:
        if not 0 <= value < end:  # NaN fails both comparisons
            raise ValueError(f"{type(self).__name__}: {what} must be in [0, {end}), got {value}")
        return float(value)  # a NumPy scalar would turn float32 into float64


class SGD(Optimizer):
    """Stochastic gradient descent (SGD.1)-(SGD.4); equals torch.optim.SGD without dampening. Slot: momentum."""

    def __init__(self, params, lr: float, momentum=0.0, nesterov=False, weight_decay=0.0):
        self.momentum = self._within("momentum", momentum, 1)
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov needs a momentum above 0, got 0")
        self.nesterov = bool(nesterov)
        super().__init__(params, lr, weight_decay, ("momentum",) if self.momentum else ())

    def _update(self, group):
        self._run(sgd_updates, group, self.lr, self.momentum, self.nesterov)


class Adam(Optimizer):
    """Adam (ADAM.1)-(ADAM.5); equals torch.optim.Adam. Slots: mean, square."""

    decoupled = False  # whether weight decay goes past the gradient

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        if len(betas) != 2:
            raise ValueError(f"{type(self).__name__}: betas must be two numbers in [0, 1), got {betas}")
        self.betas = (self._within("betas[0]", betas[0], 1), self._within("betas[1]", betas[1], 1))
        self.eps = self._within("eps", eps, math.inf)
        super().__init__(params, lr, weight_decay, ("mean", "square"))

    def _update(self, group):
        self._run(adam_updates, group, self.steps, self.lr, self.betas, self.eps, self.decoupled)


class AdamW(Adam):
    """Adam with decoupled weight decay (ADAMW.1); equals torch.optim.AdamW. Slots: mean, square."""

    decoupled = True

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr, betas, eps, weight_decay)


def _named(params: Iterable[Any], owner: str) -> dict[str, Any]:
    """Name -> Parameter for each of `params`, checked."""
    named: dict[str, Any] = {}
    for index, entry in enumerate(params):
        name, parameter = entry if isinstance(entry, tuple) else (str(index), entry)
        if not isinstance(parameter, Parameter):
            kind = type(parameter).__name__
            raise TypeError(f"{owner}: params must hold Parameters or (name, Parameter) pairs, got a {kind}")
        if name in named or any(parameter is other for other in named.values()):
            raise ValueError(f"{owner}: parameter '{name}' is given twice")
        named[name] = parameter
    if not named:
        raise ValueError(f"{owner}: there are no parameters to optimize")
    return named
