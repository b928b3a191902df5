"""Parameters: what training changes."""

from scratchnet import array


class Parameter:
    """An array that training changes, and the gradient of the loss with respect to it.

    Attributes:
        data: the values. Optimizers and `load_state_dict` write into this very array.
        grad: ∂loss/∂data, of the same shape; every backward adds to it, `zero_grad` sets it to 0.
        decay: whether weight decay pulls it towards 0 (batch norm's parameters and biases say False).
        home: the `flat.Flat` that data and grad are views of, or None.
    """

    home = None

    def __init__(self, data, *, decay=True, grad=None):
        self.data, self.decay = data, decay
        self.grad = array.get_array_module(data).zeros_like(data) if grad is None else grad

    def rows(self, rows):
        """The parameter of some output channels only: views, so that what is added to `.grad` is added here."""
        return Parameter(self.data[rows], decay=self.decay, grad=self.grad[rows])

    def __repr__(self):
        return f"Parameter(shape={self.data.shape}, dtype={self.data.dtype})"
