"""Cross entropy: minus the logarithm of the probability that the network gave to the right class.

For one picture with logits z and K classes, softmax turns logits into log-probabilities
    log pₖ = zₖ - log Σⱼ exp(zⱼ)                                                            (CE.1)
Taking the maximum out first, zₖ - max z, changes nothing in (CE.1) and keeps exp from overflowing.
The target is the right class, smoothed by ε so that the network need not push one logit to infinity
    tₖ = (1 - ε) · [k = label] + ε/K                                                        (CE.2)
    loss = -Σₖ tₖ log pₖ, averaged over the N pictures, those of all ranks                   (CE.3)

Backward. ∂ log pₖ/∂zⱼ = [k = j] - pⱼ by (CE.1), and Σₖ tₖ = 1, so
    dzⱼ = -Σₖ tₖ ([k = j] - pⱼ) / N = (pⱼ - tⱼ) / N                                          (CE.4)
The gradient of each picture sums to 0: a shift of all logits changes nothing.
Sources: Goodfellow et al. 2016, §6.2.2.3; label smoothing: Szegedy et al. 2016, §7.
"""

from scratchnet import kernels
from scratchnet.array import as_images, as_matrix
from scratchnet.device import device_of, get_array_module, is_array, kind_of
from scratchnet.module import Module
from scratchnet.parallel.ranks import sum_over_ranks


def cross_entropy_forward(logits, labels, label_smoothing):
    """Mean cross entropy of a batch, that of all ranks.

    Args:
        logits: (N, K).
        labels: (N,), integers in [0, K).
        label_smoothing: ε in [0, 1].

    Returns:
        The loss, a 0-d array in nats a picture, and the cache for `cross_entropy_backward`.
    """
    xp = get_array_module(logits)
    z = as_matrix(logits)  # (N, K) -> (K, N)
    z = z - z.real.max(axis=0)
    log_p = z - xp.log(xp.exp(z).sum(axis=0))  # (CE.1)
    classes = len(z)
    right = xp.arange(classes)[:, None] == labels  # (K, N)
    target = right * ((1 - label_smoothing) * xp.ones_like(z)) + label_smoothing / classes  # (CE.2)
    total, n = sum_over_ranks(xp.asarray((target * log_p).sum()), labels.size)
    return -total / n, (log_p, target, n)  # (CE.3)


def cross_entropy_backward(dloss, cache):
    """Gradient of `cross_entropy_forward`: dlogits (N, K); dloss is ∂L/∂loss, 1 when the loss is what is minimised."""
    log_p, target, n = cache
    xp = get_array_module(log_p)
    dz = (xp.exp(log_p) - target) * (dloss / n)  # (CE.4)
    return as_images(dz)


class CrossEntropyLoss(Module):
    """`loss = criterion(logits, labels)`, then `dlogits = criterion.backward()`. Mean over the batch.

    Raises:
        ValueError: label_smoothing outside [0, 1], logits that are not (N, K), labels that are not (N,) or not in [0, K).
        TypeError: labels that are no integers.
    """

    def __init__(self, label_smoothing=0.0):
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"CrossEntropyLoss: label_smoothing must be in [0, 1], got {label_smoothing!r}")
        self.label_smoothing = float(label_smoothing)  # a NumPy scalar would make float32 float64

    def __call__(self, logits, labels):  # type: ignore[override]  # noqa: D102
        return self.forward(logits, labels)

    def forward(self, logits, labels):  # type: ignore[override]
        """Compute the loss of logits (N, K) and labels (N,): a 0-d array of the logits' dtype."""
        self.require(logits, "N", "K")
        self._require_labels(labels, *logits.shape)
        if device_of(labels) != device_of(logits):
            raise TypeError(
                f"CrossEntropyLoss: labels are on {device_of(labels)} and logits on {device_of(logits)}: "
                f"move the labels with sn.to_device(labels, {device_of(logits)!r})"
            )
        forward, backward, _ = self.pair(kind_of(logits))
        loss, cache = forward(logits, labels, self.label_smoothing)
        self.save_cache((backward, cache), loss)
        return loss

    def backward(self, dloss=1.0):
        """Return dlogits (N, K), of the loss times `dloss`."""
        backward, cache = self.take_cache()
        return backward(float(dloss), cache)  # a NumPy scalar would make float32 float64

    def pair(self, kind):
        """(CE.1) to (CE.4)."""
        return kernels.choose(kernels.Pair(cross_entropy_forward, cross_entropy_backward), kind)

    def _require_labels(self, labels, n, classes):
        if not is_array(labels):
            raise TypeError(
                f"CrossEntropyLoss: expected labels as an array of {n} integers, got {type(labels).__name__}"
            )
        if labels.dtype.kind not in "iu":
            raise TypeError(f"CrossEntropyLoss: labels must be integers in [0, {classes}), got {labels.dtype}")
        if labels.shape != (n,):
            raise ValueError(f"CrossEntropyLoss: expected labels of shape ({n},), got {labels.shape}")
        if device_of(labels) == "cpu" and not 0 <= labels.min() <= labels.max() < classes:  # on a GPU this would wait
            raise ValueError(
                f"CrossEntropyLoss: labels must be in [0, {classes}), got {labels.min()} to {labels.max()}"
            )
