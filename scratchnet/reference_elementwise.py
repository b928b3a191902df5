"""Activations and losses beyond MobileNetV2's, as loops over single numbers: `reference.py` goes on here, read it first.

One section a family, each backward quoting the forward line that it undoes. Arguments may have any real dtype; results are
new arrays in float64. Imported by tests only.
"""

import math

import numpy as np

# Activations ----------------------------------------------------------------------------------------------------------


def sigmoid(x):
    """1 / (1 + exp(-x)) of one number, of both signs without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def normal_cdf(x):
    """The share of a normal distribution below one number."""
    return math.erfc(-x / math.sqrt(2)) / 2


ACTIVATIONS = {  # name: (y of one x, how fast y grows with it: at a kink PyTorch's choice)
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
    "tanh": (math.tanh, lambda x: 1 - math.tanh(x) ** 2),
    "silu": (lambda x: x * sigmoid(x), lambda x: sigmoid(x) + x * sigmoid(x) * sigmoid(-x)),
    "gelu": (
        lambda x: x * normal_cdf(x),
        lambda x: normal_cdf(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    ),
    "hardsigmoid": (
        lambda x: 0 if x <= -3 else 1 if x >= 3 else (x + 3) / 6,
        lambda x: 0 if x <= -3 else 0 if x >= 3 else 1 / 6,
    ),
    "hardswish": (
        lambda x: 0 if x <= -3 else x if x >= 3 else x * (x + 3) / 6,
        lambda x: 0 if x <= -3 else 1 if x >= 3 else (2 * x + 3) / 6,
    ),
}


def activation_forward(name, x):
    """y of each number of x by itself, by its name in ACTIVATIONS."""
    y = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        y[at] = ACTIVATIONS[name][0](float(x[at]))
    return y


def activation_backward(name, dy, x):
    """dx of `activation_forward`: dy times how fast y grows with x."""
    dx = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        dx[at] += dy[at] * ACTIVATIONS[name][1](float(x[at]))  # y[at] = f(x[at])
    return dx


def leaky_relu_forward(x, negative_slope):
    """x where it is above 0, else negative_slope times x."""
    y = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        y[at] = x[at] if x[at] > 0 else negative_slope * x[at]
    return y


def leaky_relu_backward(dy, x, negative_slope):
    """dx of `leaky_relu_forward`; negative_slope at the kink x = 0."""
    dx = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        dx[at] += dy[at] if x[at] > 0 else negative_slope * dy[at]  # y = x if x > 0 else negative_slope * x
    return dx


def softmax_forward(x, dim):
    """exp(x) divided by its sum along an axis; the largest exp is exp(0), so that none overflows."""
    x = np.moveaxis(np.asarray(x, np.float64), dim, -1)
    y = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        line = x[at[:-1]]
        y[at] = math.exp(x[at] - max(line)) / sum(math.exp(each - max(line)) for each in line)
    return np.moveaxis(y, -1, dim)


def softmax_backward(dy, x, dim):
    """dx of `softmax_forward`: each y has x above the line, and every x of its line below it."""
    y, dy = (np.moveaxis(np.asarray(value, np.float64), dim, -1) for value in (softmax_forward(x, dim), dy))
    dx = np.zeros(y.shape)
    for at in np.ndindex(y.shape):
        dx[at] += dy[at] * y[at]  # y[at] = exp(x[at]) / …
        for j in range(y.shape[-1]):
            dx[(*at[:-1], j)] += -dy[at] * y[at] * y[(*at[:-1], j)]  # … / Σ exp(x)
    return np.moveaxis(dx, -1, dim)


# Losses ---------------------------------------------------------------------------------------------------------------


def _softplus(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))  # log(1 + exp(x)), which is -log(1 - sigmoid(x))


LOSSES = {  # name: (the loss of one x with target t and weight w, how fast it grows with x)
    "mse_loss": (lambda x, t, w: (x - t) ** 2, lambda x, t, w: 2 * (x - t)),
    "l1_loss": (lambda x, t, w: abs(x - t), lambda x, t, w: (x > t) - (x < t)),
    "bce_with_logits_loss": (
        lambda x, t, w: w * t * _softplus(-x) + (1 - t) * _softplus(x),
        lambda x, t, w: -w * t * sigmoid(-x) + (1 - t) * sigmoid(x),
    ),
}


def elementwise_loss_forward(name, x, target, reduction, weight=1.0):
    """The mean or the sum of the losses of all numbers, by their name in LOSSES; weight: a number, or of x's shape."""
    weight, loss = np.broadcast_to(weight, x.shape), 0.0
    for at in np.ndindex(x.shape):
        share = 1 / x.size if reduction == "mean" else 1
        loss += share * LOSSES[name][0](float(x[at]), float(target[at]), float(weight[at]))
    return np.float64(loss)


def elementwise_loss_backward(name, x, target, reduction, weight=1.0):
    """Gradient of `elementwise_loss_forward`: dx."""
    weight, dx = np.broadcast_to(weight, x.shape), np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        share = 1 / x.size if reduction == "mean" else 1
        slope = LOSSES[name][1](float(x[at]), float(target[at]), float(weight[at]))
        dx[at] += share * slope  # loss += share * f(x[at], target[at])
    return dx


def _class_weights(labels, classes, label_smoothing, weight, ignore_index):
    """What -log p of each class counts for in each picture (N, K), and the weight of each picture's label (N,)."""
    wanted, of_label = np.zeros((len(labels), classes)), np.zeros(len(labels))
    for n, k in np.ndindex(wanted.shape):
        if labels[n] != ignore_index:
            wanted[n, k] = weight[k] * ((1 - label_smoothing) * (k == labels[n]) + label_smoothing / classes)
            of_label[n] = weight[labels[n]]
    return wanted, of_label


def weighted_cross_entropy_forward(logits, labels, label_smoothing, weight, ignore_index, reduction):
    """Cross entropy where class k weighs weight[k] and some pictures are left out; the mean is divided by weights."""
    wanted, of_label = _class_weights(labels, logits.shape[1], label_smoothing, weight, ignore_index)
    p, loss = softmax_forward(logits, 1), 0.0
    for n, k in np.ndindex(logits.shape):
        loss += -wanted[n, k] * math.log(p[n, k])
    return np.float64(loss / (sum(of_label) if reduction == "mean" else 1))


def weighted_cross_entropy_backward(logits, labels, label_smoothing, weight, ignore_index, reduction):
    """Gradient of `weighted_cross_entropy_forward`: dlogits (N, K)."""
    wanted, of_label = _class_weights(labels, logits.shape[1], label_smoothing, weight, ignore_index)
    p, dp = softmax_forward(logits, 1), np.zeros(logits.shape)
    for n, k in np.ndindex(logits.shape):
        dp[n, k] = -wanted[n, k] / p[n, k] / (sum(of_label) if reduction == "mean" else 1)  # loss += -wanted * log(p)
    return softmax_backward(dp, logits, 1)
