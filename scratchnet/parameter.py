"""Parameters: what training changes."""

from scratchnet import kernels
from scratchnet.device import device_of, kind_of, zeros_like


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


def add_to_all(totals, terms):
    """Add to each array its term, in place."""
    for total, term in zip(totals, terms, strict=True):
        total += term


def is_trained(parameter):
    """Whether a gradient is wanted for it: it is there (a layer may have no bias), and not frozen."""
    return parameter is not None and parameter.requires_grad


def add_gradients(parameters, gradients):
    """Add to each parameter's gradient what a backward has found, but for frozen ones: on a GPU a launch for three of them.

    Args:
        parameters: some of a layer's, or of a step's; None where there is none, such as a bias.
        gradients: as many arrays; None beside None, and where nothing was computed for a frozen one.
    """
    pairs = [pair for pair in zip(parameters, gradients, strict=True) if is_trained(pair[0])]
    if not pairs:
        return
    totals, terms = [parameter.grad for parameter, _ in pairs], [gradient for _, gradient in pairs]
    on_gpu = device_of(terms[0]) == "cuda"  # on a CPU a choice takes longer than most of these sums
    (kernels.choose(ADD, kind_of(terms[0])).forward if on_gpu else add_to_all)(totals, terms)


ADD = kernels.Pair(add_to_all)
