"""Parameters: what training changes."""

from scratchnet import kernels, together
from scratchnet.device import zeros_like


class Parameter:
    """An array that training changes, and the gradient of the loss with respect to it.

    Attributes:
        data: the values. Optimizers and `load_state_dict` write into this very array.
        grad: ∂loss/∂data, of the same shape; every backward adds to it, `zero_grad` sets it to 0.
        requires_grad: False freezes it: no gradient is computed for it, and optimizers leave it alone, whenever it is set.
        decay: whether weight decay pulls it towards 0 (batch norm's parameters and biases say False).
        home: the `flat.Flat` that data and grad are views of, or None.
    """

    home = None

    def __init__(self, data, requires_grad=True, *, decay=True):
        self.data, self.requires_grad, self.decay = data, requires_grad, decay
        self.grad = zeros_like(data)

    def __repr__(self):
        return f"Parameter(shape={self.data.shape}, dtype={self.data.dtype})"


def add_to_all(rows):
    """Add to each array its term, in place: rows of (array, term)."""
    for total, term in rows:
        total += term


def is_trained(parameter):
    """Whether a gradient is wanted for it: it is there (a layer may have no bias), and not frozen."""
    return parameter is not None and parameter.requires_grad


def add_gradients(parameters, gradients):
    """Add to each parameter's gradient what a backward has found, but for frozen ones; on a GPU those of a whole chain
    together (together.py).

    Args:
        parameters: some of a layer's, or of a step's; None where there is none, such as a bias.
        gradients: as many arrays; None beside None, and where nothing was computed for a frozen one.
    """
    pairs = zip(parameters, gradients, strict=True)
    rows = [(parameter.grad, gradient) for parameter, gradient in pairs if is_trained(parameter)]
    if rows:
        together.do(ADD, rows)


ADD = kernels.Pair(add_to_all)
