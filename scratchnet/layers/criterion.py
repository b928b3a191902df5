"""What losses share: `loss = criterion(x, target)`, then `dx = criterion.backward()`."""

from scratchnet.device import device_of, get_array_module, is_array
from scratchnet.module import Module
from scratchnet.parallel.ranks import sum_over_ranks

REASON = {"none": ": a loss is one number here, which backward starts from"}


class Loss(Module):
    """Base class of the losses.

    Args:
        reduction: "mean" or "sum", over all ranks' pictures.

    Raises:
        ValueError: another reduction.
    """

    def __init__(self, reduction="mean"):
        if reduction not in ("mean", "sum"):
            why = REASON.get(reduction, "") if isinstance(reduction, str) else ""
            raise ValueError(f"{self.name}: reduction must be 'mean' or 'sum', got {reduction!r}{why}")
        self.reduction = reduction

    def __call__(self, x, target):  # type: ignore[override]  # noqa: D102
        return self.forward(x, target)

    def forward(self, x, target):  # type: ignore[override]
        """Compute the loss of x and its target: a 0-d array of x's dtype."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, dloss=1.0):
        """Return dx, of the loss times `dloss`."""
        backward, cache = self.take_cache()
        return backward(float(dloss), cache)  # a NumPy scalar would make float32 float64

    def require_here(self, what, array, x):
        """Raise TypeError unless an array is where x is."""
        if device_of(array) != device_of(x):
            raise TypeError(
                f"{self.name}: {what} on {device_of(array)} and x on {device_of(x)}: "
                f"move the first with sn.to_device({what.split()[0]}, {device_of(x)!r})"
            )

    def target_for(self, x, target):
        """The target as an array of x's dtype; raises TypeError or ValueError where it does not fit x."""
        if not is_array(target):
            raise TypeError(f"{self.name}: expected target as an array of shape {x.shape}, got {type(target).__name__}")
        if target.dtype.kind not in "fiub":
            raise TypeError(f"{self.name}: target must be real numbers, got {target.dtype}")
        if target.shape != x.shape:
            raise ValueError(f"{self.name}: expected target of x's shape {x.shape}, got {target.shape}")
        self.require_here("target is", target, x)
        return target.astype(x.dtype, copy=False)

    def extra_repr(self):  # noqa: D102
        return "" if self.reduction == "mean" else f"reduction={self.reduction!r}"


def reduced(total, count, reduction):
    """The loss of all ranks together, and the number that it was divided by.

    Args:
        total: the sum of this rank's losses.
        count: how many they are, or the sum of their weights.
        reduction: "mean", or "sum", which divides by 1.

    Raises:
        ValueError: there is nothing to take the mean of (unasked on a GPU).
    """
    total, count = sum_over_ranks(get_array_module(total).asarray(total), count)  # NumPy's sums are no arrays
    divisor = count if reduction == "mean" else 1
    if device_of(divisor) == "cpu" and divisor == 0:
        raise ValueError("CrossEntropyLoss: every label is ignore_index, or of weight 0: there is no mean")
    return total / divisor, divisor
