"""Optimizers: what a gradient does to its parameter. SGD with momentum, as PyTorch has it; `adaptive.py` has the others.

In the formulas p is one parameter, g its gradient ∂L/∂p, lr the learning rate, wd the weight decay. Everything is
elementwise, so a slot (a running quantity the optimizer keeps) has the shape of its parameter.

SGD (Sutskever et al. 2013, section 2, in PyTorch's form: the rate scales the velocity, it is not part of it)
    g = g + wd · p            the gradient of the penalty ½ wd p²                  (SGD.1)
    v = momentum · v + g      v starts at 0, so the first v is the first g         (SGD.2)
    d = g + momentum · v      Nesterov: where the next step's momentum will lead   (SGD.3)
    p = p - lr · d            plain momentum takes d = v, no momentum d = g        (SGD.4)
"""

from scratchnet import kernels
from scratchnet.training.adaptive import Adam as Adam
from scratchnet.training.adaptive import AdamW as AdamW
from scratchnet.training.adaptive import RMSprop as RMSprop
from scratchnet.training.optimizer import Optimizer


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


def sgd_updates(group, lr, momentum, nesterov):
    """`sgd_update` of every parameter of a `Group`."""
    for (data, grad, *velocity), weight_decay in group:
        options = lr, momentum, nesterov, weight_decay
        kernels.run(sgd_update, data, grad, velocity[0] if velocity else None, *options)


class SGD(Optimizer):
    """Stochastic gradient descent (SGD.1)-(SGD.4); equals torch.optim.SGD without dampening. Slot: momentum."""

    def __init__(self, params, lr: float, momentum=0.0, nesterov=False, weight_decay=0.0):
        super().__init__(params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)

    @classmethod
    def slots(cls, options):  # noqa: D102
        return ("momentum",) if options["momentum"] else ()

    @classmethod
    def require_consistent(cls, options):  # noqa: D102
        if options["nesterov"] and not options["momentum"]:
            raise ValueError("SGD: nesterov needs a momentum above 0, got 0")

    def _update(self, group, options):
        self._run(sgd_updates, group, options["lr"], options["momentum"], options["nesterov"])
