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
With a sum in place of the mean, loss and gradient are N times as large, N the pictures of all ranks     (CE.5)

Where classes weigh w, and pictures whose label is `ignore_index` count for nothing (cₙ = 0, else 1),
    tₖ = cₙ wₖ · ((1 - ε) · [k = label] + ε/K)                                              (WCE.1)
    loss = -Σₖ tₖ log pₖ, summed over the pictures and divided by Σₙ cₙ w[label]             (WCE.2)
which is PyTorch's mean. The sum of t is no longer 1, and ∂ log pₖ/∂zⱼ = [k = j] - pⱼ now gives
    dzⱼ = (pⱼ · Σₖ tₖ - tⱼ) / Σₙ cₙ w[label]                                                 (WCE.3)
Sources: Goodfellow et al. 2016, §6.2.2.3; label smoothing: Szegedy et al. 2016, §7.
"""

from scratchnet import kernels
from scratchnet.array import as_images, as_matrix
from scratchnet.device import device_of, get_array_module, is_array, kind_of
from scratchnet.layers.arguments import REDUCTIONS, pytorch_arguments
from scratchnet.layers.criterion import Loss, reduced
from scratchnet.parallel import ranks
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
    log_p = log_softmax(as_matrix(logits))  # (N, K) -> (K, N)
    classes = len(log_p)
    right = xp.arange(classes)[:, None] == labels  # (K, N)
    target = right * ((1 - label_smoothing) * xp.ones_like(log_p)) + label_smoothing / classes  # (CE.2)
    total, n = sum_over_ranks(xp.asarray((target * log_p).sum()), labels.size)
    return -total / n, (log_p, target, n)  # (CE.3)


def cross_entropy_backward(dloss, cache):
    """Gradient of `cross_entropy_forward`: dlogits (N, K); dloss is ∂L/∂loss, 1 when the loss is what is minimised."""
    log_p, target, n = cache
    xp = get_array_module(log_p)
    dz = (xp.exp(log_p) - target) * (dloss / n)  # (CE.4)
    return as_images(dz)


def log_softmax(z):
    """The logarithms of the classes' probabilities, logits z (K, N) -> (K, N)."""
    xp = get_array_module(z)
    z = z - z.real.max(axis=0)
    return z - xp.log(xp.exp(z).sum(axis=0))  # (CE.1)


def weighted_cross_entropy_forward(logits, labels, label_smoothing, weight, ignore_index, reduction):
    """Cross entropy of a batch, that of all ranks, with weights of classes.

    Args:
        logits: (N, K).
        labels: (N,), integers in [0, K), or ignore_index.
        label_smoothing: ε in [0, 1].
        weight: (K,), of at least 0.
        ignore_index: the label of pictures that are left out; None leaves none out.
        reduction: "mean" or "sum".

    Returns:
        The loss, a 0-d array in nats, and the cache for `weighted_cross_entropy_backward`.
    """
    xp = get_array_module(logits)
    log_p = log_softmax(as_matrix(logits))  # (N, K) -> (K, N)
    weight = weight[:, None].astype(log_p.dtype)
    if ignore_index is not None:
        weight = weight * (labels != ignore_index)  # (K, 1) · (N,) -> (K, N)
    right = xp.arange(len(log_p))[:, None] == labels
    target = weight * (right * ((1 - label_smoothing) * xp.ones_like(log_p)) + label_smoothing / len(log_p))  # (WCE.1)
    loss, divisor = reduced((target * log_p).sum(), (weight * right).sum(), reduction)
    return -loss, (log_p, target, divisor)  # (WCE.2)


def weighted_cross_entropy_backward(dloss, cache):
    """Gradient of `weighted_cross_entropy_forward`: dlogits (N, K)."""
    log_p, target, divisor = cache
    p = get_array_module(log_p).exp(log_p)
    return as_images((p * target.sum(axis=0) - target) * (dloss / divisor))  # (WCE.3)


@pytorch_arguments(size_average=REDUCTIONS, reduce=REDUCTIONS)
class CrossEntropyLoss(Loss):
    """`loss = criterion(logits, labels)`, then `dlogits = criterion.backward()`. Mean over the batch.

    Logits may have pixels, (N, K, H, W) or any other axes behind K, with labels (N, H, W): each is a picture of its own.

    Args:
        label_smoothing: ε in [0, 1].
        weight: of each class, an array (K,); kept as a buffer, and moves with `to`. The mean is
            then divided by the weights of the labels, as in PyTorch.
        ignore_index: the label of pictures that count for nothing; None (PyTorch has -100) for none.
        reduction: "mean" or "sum", over all ranks' pictures.

    Raises:
        ValueError: label_smoothing outside [0, 1], logits that are not (N, K, …), labels that are not (N, …) or not in
            [0, K); another reduction, a weight that is not (K,); every picture is left out (unasked on a GPU).
        TypeError: labels that are no integers; a weight that is no floating-point array.
    """

    def __init__(self, label_smoothing=0.0, *, weight=None, ignore_index=None, reduction="mean"):
        super().__init__(reduction)
        if is_array(label_smoothing) and label_smoothing.ndim:
            raise TypeError("CrossEntropyLoss: label_smoothing must be a number, got an array: weights are weight=…")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"CrossEntropyLoss: label_smoothing must be in [0, 1], got {label_smoothing!r}")
        if weight is not None and not (is_array(weight) and weight.dtype.kind == "f" and weight.ndim == 1):
            raise TypeError(f"CrossEntropyLoss: weight must be a floating-point array (K,), got {weight!r}")
        self.label_smoothing = float(label_smoothing)  # a NumPy scalar would make float32 float64
        self.weight, self.ignore_index = weight, ignore_index
        self.buffers = () if weight is None else ("weight",)

    def forward(self, logits, labels):  # type: ignore[override]
        """Compute the loss of logits (N, K, …) and labels (N, …): a 0-d array of the logits' dtype."""
        self.require(logits)
        self._require_labels(labels, logits.shape)
        if device_of(labels) != device_of(logits):
            raise TypeError(
                f"CrossEntropyLoss: labels are on {device_of(labels)} and logits on {device_of(logits)}: "
                f"move the labels with sn.to_device(labels, {device_of(logits)!r})"
            )
        x = logits
        if x.ndim > 2:  # (N, K, H, W) -> (H·W·N, K): pixels, as they lie in memory
            logits, labels = as_images(as_matrix(x)), as_matrix(labels[:, None])[0]
        plain = self.weight is None and self.ignore_index is None
        loss, backward, cache = (self._alike if plain else self._weighted)(logits, labels)
        back = backward if x.ndim == 2 else lambda dloss, cache: as_images(as_matrix(backward(dloss, cache)), x)
        self.save_cache((back, cache), loss)
        return loss

    def pair(self, kind):
        """(CE.1) to (CE.4)."""
        return kernels.choose(kernels.Pair(cross_entropy_forward, cross_entropy_backward), kind)

    def _alike(self, logits, labels):
        """The loss, its backward and the cache, where all classes weigh the same."""
        forward, backward, _ = self.pair(kind_of(logits))
        loss, cache = forward(logits, labels, self.label_smoothing)
        if self.reduction == "mean":
            return loss, backward, cache
        count = ranks.place(len(logits))[1]
        return loss * count, (lambda dloss, cache: backward(dloss * count, cache)), cache  # (CE.5)

    def _weighted(self, logits, labels):
        weight = self.weight
        if weight is None:
            weight = get_array_module(logits).ones(logits.shape[1], logits.real.dtype)
        elif weight.shape != logits.shape[1:]:
            raise ValueError(f"CrossEntropyLoss: expected weight of shape {logits.shape[1:]}, got {weight.shape}")
        self.require_here("weight is", weight, logits)
        options = self.label_smoothing, weight, self.ignore_index, self.reduction
        loss, cache = weighted_cross_entropy_forward(logits, labels, *options)
        return loss, weighted_cross_entropy_backward, cache

    def _require_labels(self, labels, shape):
        (n, classes, *pixels) = shape
        if not is_array(labels):
            many = " × ".join(map(str, (n, *pixels)))
            raise TypeError(
                f"CrossEntropyLoss: expected labels as an array of {many} integers, got {type(labels).__name__}"
            )
        if labels.dtype.kind not in "iu":
            raise TypeError(f"CrossEntropyLoss: labels must be integers in [0, {classes}), got {labels.dtype}")
        if labels.shape != (n, *pixels):
            raise ValueError(
                f"CrossEntropyLoss: expected labels of shape {(n, *pixels)} for logits of shape {shape}, got {labels.shape}"
            )
        if device_of(labels) == "cpu":  # on a GPU this would wait
            counted = labels if self.ignore_index is None else labels[labels != self.ignore_index]
            if counted.size and not 0 <= counted.min() <= counted.max() < classes:
                raise ValueError(
                    f"CrossEntropyLoss: labels must be in [0, {classes}), got {counted.min()} to {counted.max()}"
                )
