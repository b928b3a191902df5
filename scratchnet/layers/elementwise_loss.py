"""Losses that compare x with its target number by number, and are the mean over all M numbers, or their sum (M = 1 below).

With d = x - target, σ from `smooth.py`, and a target t that is a probability
    MSELoss:  loss = Σ d² / M                   (MSE.1)     dx = 2 d / M                                  (MSE.2)
    L1Loss:   loss = Σ |d| / M                  (L1.1)      dx = sign(d) / M, 0 where d = 0               (L1.2)
    BCEWithLogitsLoss, of logits x and p = σ(x):
              loss = -Σ (w·t·log p + (1 - t)·log(1 - p)) / M                                              (BCE.1)
              dx = ((1 - t)·σ(x) - w·t·σ(-x)) / M                                                         (BCE.2)

(L1.2) is a subgradient at d = 0, where any number from -1 to 1 is one; 0 is PyTorch's choice. (BCE.2) since
d log σ(x)/dx = 1 - σ(x) = σ(-x) and 1 - p = σ(-x); for w = 1 it is (p - t) / M. w weighs what is there against what is not.
A sigmoid and a logarithm after it would round p to 0 or 1 and then give ∞; from the logits nothing overflows:
    -log σ(-x) = max(x, 0) + log(1 + exp(-|x|)),   -log σ(x) = max(-x, 0) + the same        (BCE.3)
Sources: Bishop 2006, §5.2 (both losses as the likelihood's logarithm: of normal noise, of a coin).
"""

from scratchnet import kernels
from scratchnet.array import as_images, as_maps
from scratchnet.device import device_of, get_array_module, is_array
from scratchnet.layers.activation import clip
from scratchnet.layers.arguments import REDUCTIONS, pytorch_arguments
from scratchnet.layers.criterion import Loss, reduced
from scratchnet.layers.normal import magnitude
from scratchnet.layers.smooth import sigmoid


def mse_loss_forward(x, target, reduction):
    """Squared differences.

    Args:
        x, target: of one shape (N, C, …).
        reduction: "mean" or "sum", over all ranks' pictures.

    Returns:
        The loss, a 0-d array, and the cache for `mse_loss_backward`.
    """
    d = as_maps(x) - as_maps(target)
    loss, m = reduced((d * d).sum(), d.size, reduction)  # (MSE.1)
    return loss, (d, m)


def mse_loss_backward(dloss, cache):
    """Gradient of `mse_loss_forward`: dx like x; dloss is ∂L/∂loss, 1 when the loss is what is minimised."""
    d, m = cache
    return as_images(d * (2 * dloss / m))  # (MSE.2)


def l1_loss_forward(x, target, reduction):
    """Absolute differences; as `mse_loss_forward`."""
    d = as_maps(x) - as_maps(target)
    loss, m = reduced(magnitude(d).sum(), d.size, reduction)  # (L1.1)
    return loss, (d, m)


def l1_loss_backward(dloss, cache):
    """Gradient of `l1_loss_forward`: dx like x."""
    d, m = cache
    return as_images(get_array_module(d).sign(d.real) * (dloss / m))  # (L1.2)


def bce_with_logits_loss_forward(x, target, pos_weight, reduction):
    """Binary cross entropy.

    Args:
        x: logits, (N, C, …).
        target: probabilities in [0, 1], of x's shape.
        pos_weight: w, a number, or an array that has one for each channel, (C, 1, …).
        reduction: "mean" or "sum", over all ranks' pictures.

    Returns:
        The loss, a 0-d array in nats, and the cache for `bce_with_logits_loss_backward`.
    """
    z, t = as_maps(x), as_maps(target)  # (N, C, …) -> (C, …, N)
    both = get_array_module(z).log1p(get_array_module(z).exp(-magnitude(z)))
    there, absent = pos_weight * t, 1 - t
    losses = there * (clip(-z, 0, None) + both) + absent * (clip(z, 0, None) + both)  # (BCE.3)
    loss, m = reduced(losses.sum(), z.size, reduction)  # (BCE.1)
    return loss, (z, there, absent, m)


def bce_with_logits_loss_backward(dloss, cache):
    """Gradient of `bce_with_logits_loss_forward`: dx like x."""
    z, there, absent, m = cache
    return as_images((absent * sigmoid(z) - there * sigmoid(-z)) * (dloss / m))  # (BCE.2)


@pytorch_arguments(size_average=REDUCTIONS, reduce=REDUCTIONS)
class MSELoss(Loss):
    """The mean of (x - target)², x and target of any one shape (N, C, …), or with `reduction="sum"` their sum.

    Raises:
        ValueError: target has another shape than x; another reduction.
        TypeError: x is no floating-point array, target no array of real numbers.
    """

    def forward(self, x, target):  # type: ignore[override]
        """Compute the loss: a 0-d array of x's dtype."""
        self.require(x)
        forward, backward, _ = self.pair(None)
        loss, cache = forward(x, self.target_for(x, target), self.reduction)
        self.save_cache((backward, cache), loss)
        return loss

    def pair(self, kind):
        """(MSE.1), (MSE.2)."""
        return kernels.Pair(mse_loss_forward, mse_loss_backward)


class L1Loss(MSELoss):
    """The mean of |x - target|; the gradient where they are equal is 0. All else as for `MSELoss`."""

    def pair(self, kind):
        """(L1.1), (L1.2)."""
        return kernels.Pair(l1_loss_forward, l1_loss_backward)


@pytorch_arguments(
    size_average=REDUCTIONS,
    reduce=REDUCTIONS,
    weight=((None,), "multiply what backward() returns by it (pos_weight weighs targets of 1 against those of 0)"),
)
class BCEWithLogitsLoss(Loss):
    """The mean binary cross entropy of logits x and probabilities target, of any one shape (N, C, …).

    Args:
        pos_weight: how much more a target of 1 counts than one of 0: a number, or an array of shape (C,) for x (N, C),
            (C, 1, 1) for x (N, C, H, W). An array is kept as a buffer, and moves with `to` and `astype`.
        reduction: "mean" or "sum", over all ranks' pictures.

    Raises:
        ValueError: target has another shape than x, or is not in [0, 1] (unasked on a GPU); pos_weight does not fit x.
        TypeError: x is no floating-point array, target no array of real numbers.
    """

    def __init__(self, pos_weight=None, reduction="mean"):
        super().__init__(reduction)
        if is_array(pos_weight) and pos_weight.ndim:
            self.buffers = ("pos_weight",)
            self.pos_weight = pos_weight
        elif isinstance(pos_weight, (list, tuple)):
            raise TypeError(f"BCEWithLogitsLoss: pos_weight must be a number or an array, got {pos_weight!r}")
        else:
            self.pos_weight = 1.0 if pos_weight is None else float(pos_weight)

    def forward(self, x, target):  # type: ignore[override]
        """Compute the loss: a 0-d array of x's dtype."""
        self.require(x)
        target = self.target_for(x, target)
        if device_of(x) == "cpu" and not 0 <= target.real.min() <= target.real.max() <= 1:  # on a GPU this would wait
            low, high = target.real.min(), target.real.max()
            raise ValueError(f"{self.name}: target must be probabilities in [0, 1], got {low} to {high}")
        forward, backward, _ = self.pair(None)
        loss, cache = forward(x, target, self._weight_for(x), self.reduction)
        self.save_cache((backward, cache), loss)
        return loss

    def pair(self, kind):
        """(BCE.1), (BCE.2)."""
        return kernels.Pair(bce_with_logits_loss_forward, bce_with_logits_loss_backward)

    def _weight_for(self, x):
        if not is_array(self.pos_weight):
            return self.pos_weight
        wanted = (x.shape[1],) + (1,) * (x.ndim - 2)
        if self.pos_weight.shape != wanted:
            raise ValueError(
                f"{self.name}: expected pos_weight of shape {wanted} for x of shape {x.shape}, got {self.pos_weight.shape}"
            )
        self.require_here("pos_weight is", self.pos_weight, x)
        return self.pos_weight.astype(x.dtype, copy=False)[..., None]  # (C, 1, 1) -> (C, 1, 1, 1), as maps are
