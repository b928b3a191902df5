"""Optimizers that give every number a rate of its own, by the size of its gradients: RMSprop, Adam, AdamW, as in PyTorch.

In the formulas p is one parameter, g its gradient ∂L/∂p, lr the learning rate, wd the weight decay, t = 1, 2, … the
step. Everything is elementwise, so a slot (a running quantity the optimizer keeps) has the shape of its parameter.

RMSprop (Tieleman and Hinton 2012, lecture 6e; centered: Graves 2013, section 4.2)
    g = g + wd · p                                                                (RMS.1)
    s = α s + (1 - α) g²      running mean of the gradient's square, from 0        (RMS.2)
    m = α m + (1 - α) g       centered: of the gradient itself, too               (RMS.3)
    s - m² ≥ 0                then in the place of s: its variance. By Cauchy and Schwarz it is not below 0, but for
                              rounding, which is cut off (PyTorch takes the root of it: NaN)   (RMS.4)
    d = g / (√s + eps)                                                            (RMS.5)
    v = momentum · v + d      with momentum, v from 0                             (RMS.6)
    p = p - lr · v            without, v is d                                      (RMS.7)

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
"""

import math

from scratchnet import kernels
from scratchnet.device import get_array_module
from scratchnet.training.optimizer import Optimizer


def rmsprop_update(data, grad, square, mean, velocity, lr, alpha, eps, momentum, weight_decay):
    """One step of RMSprop on one parameter, in place on `data` and the slots; `grad` is only read.

    Args:
        data, grad: the parameter and its gradient, of one shape and dtype.
        square: the slot s, alike.
        mean: the slot m; None where it is not centered.
        velocity: the slot v; None without momentum.
        lr, alpha, eps, momentum, weight_decay: Python scalars; eps is in units of the gradient.
    """
    if weight_decay:
        grad = grad + weight_decay * data  # (RMS.1)
    square *= alpha
    square += (1 - alpha) * (grad * grad)  # (RMS.2)
    spread = square
    if mean is not None:
        mean *= alpha
        mean += (1 - alpha) * grad  # (RMS.3)
        spread = get_array_module(data).maximum(square - mean * mean, 0)  # (RMS.4)
    direction = grad / (spread**0.5 + eps)  # (RMS.5)
    if velocity is not None:
        velocity *= momentum
        velocity += direction  # (RMS.6)
        direction = velocity
    data -= lr * direction  # (RMS.7)


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


def rmsprop_updates(group, lr, alpha, eps, momentum, centered):
    """`rmsprop_update` of every parameter of a `Group`."""
    for (data, grad, square, *others), weight_decay in group:
        mean, velocity = others[0] if centered else None, others[-1] if momentum else None
        kernels.run(rmsprop_update, data, grad, square, mean, velocity, lr, alpha, eps, momentum, weight_decay)


def adam_updates(group, step, lr, betas, eps, decoupled):
    """`adam_update` of every parameter of a `Group`; `decoupled`: weight decay is AdamW's."""
    for (data, *arrays), weight_decay in group:
        if decoupled and weight_decay:
            data *= 1 - lr * weight_decay  # (ADAMW.1)
        kernels.run(adam_update, data, *arrays, step, lr, betas, eps, 0.0 if decoupled else weight_decay)


class RMSprop(Optimizer):
    """RMSprop (RMS.1)-(RMS.7); equals torch.optim.RMSprop. Slots: square, mean where centered, momentum."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
        rates = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, **rates, centered=centered)

    @classmethod
    def slots(cls, options):  # noqa: D102
        return ("square", *("mean",) * bool(options["centered"]), *("momentum",) * bool(options["momentum"]))

    def _update(self, group, options):
        self._run(rmsprop_updates, group, *(options[key] for key in ("lr", "alpha", "eps", "momentum", "centered")))


class Adam(Optimizer):
    """Adam (ADAM.1)-(ADAM.5); equals torch.optim.Adam. Slots: mean, square."""

    decoupled = False  # whether weight decay goes past the gradient

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    @classmethod
    def slots(cls, options):  # noqa: D102
        return "mean", "square"

    def _update(self, group, options):
        self._run(adam_updates, group, self.steps, *(options[key] for key in ("lr", "betas", "eps")), self.decoupled)


class AdamW(Adam):
    """Adam with decoupled weight decay (ADAMW.1); equals torch.optim.AdamW. Slots: mean, square."""

    decoupled = True

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr, betas, eps, weight_decay)
