"""Parameters: what training changes."""

from scratchnet.device import zeros_like


class Parameter:
    """An array that training changes, and the gradient of the loss with respect to it.

    Attributes:
        data: the values. Optimizers and `load_state_dict` write into this very array.
        grad: ∂loss/∂data, of the same shape; every backward adds to it, `zero_grad` sets it to 0.
        decay: whether weight decay pulls it towards 0 (batch norm's parameters and biases say False).
        home: the `flat.Flat` that data and grad are views of, or None.
    """

    home = None

    def __init__(self, data, *, decay=True):
        self.data, self.decay = data, decay
        self.grad = zeros_like(data)

    def __repr__(self):
        return f"Parameter(shape={self.data.shape}, dtype={self.data.dtype})"
