"""Backward is forward read from the other side: wherever a line uses x to make y, x gets back its share of dy.

Read this file first: every operation of the library as loops over single numbers, slow and plain on purpose. The
layers compute the same values quickly, and the tests hold them to these functions.

`dx` is short for ∂loss/∂x: how fast the loss grows with that one number of x. Backward gets `dy`, the same for the
output, and hands it on by the chain rule, in the same loops with the same indices:

    y += weight * x      forward: one more in x is `weight` more in y, and that is `weight * dy` more in the loss; so
    dx += weight * dy    backward: `weight * dy` for x, and for the same reason `x * dy` for the weight
    dweight += x * dy

A number used in several places moves the loss through each of them, so the shares add up: gradients start at 0 and
grow by `+=`. Where forward takes several steps, backward undoes them last to first. That is all of backpropagation.
Each backward quotes the forward line that it undoes. Images are (N, C, H, W); `kernel_size`, `stride`, `padding` and
`dilation` are pairs (along H, along W). Arguments may have any real dtype; results are new arrays in float64.
"""

import numpy as np


def _float64(*arrays):
    return [np.asarray(array, dtype=np.float64) for array in arrays]


def _conv2d_products(y_shape, weight_shape, x_shape, stride, padding, dilation, groups):
    """Every multiplication of a convolution, as three places: in y, in weight, in x."""
    for n, o, oh, ow in np.ndindex(y_shape):
        for k, kh, kw in np.ndindex(weight_shape[1:]):
            c = o // (weight_shape[0] // groups) * weight_shape[1] + k  # the inputs of o's own group
            h = oh * stride[0] + kh * dilation[0] - padding[0]
            w = ow * stride[1] + kw * dilation[1] - padding[1]
            if 0 <= h < x_shape[2] and 0 <= w < x_shape[3]:  # in the padding x is 0: nothing to multiply
                yield (n, o, oh, ow), (o, k, kh, kw), (n, c, h, w)


def conv2d_forward(x, weight, bias, stride, padding, dilation, groups):
    """Slide a small filter over x (N, C, H, W); weight (O, C/groups, KH, KW), bias (O,) or None -> y (N, O, OH, OW)."""
    x, weight = _float64(x, weight)
    oh = (x.shape[2] + 2 * padding[0] - dilation[0] * (weight.shape[2] - 1) - 1) // stride[0] + 1
    ow = (x.shape[3] + 2 * padding[1] - dilation[1] * (weight.shape[3] - 1) - 1) // stride[1] + 1
    y = np.zeros((x.shape[0], weight.shape[0], oh, ow))
    for n, o, i, j in np.ndindex(y.shape):
        y[n, o, i, j] += 0 if bias is None else bias[o]
    for at_y, at_weight, at_x in _conv2d_products(y.shape, weight.shape, x.shape, stride, padding, dilation, groups):
        y[at_y] += weight[at_weight] * x[at_x]
    return y


def conv2d_backward(dy, x, weight, stride, padding, dilation, groups):
    """Gradients of `conv2d_forward`: dx, dweight, dbias."""
    dy, x, weight = _float64(dy, x, weight)
    dx, dweight, dbias = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(weight.shape[0])
    for n, o, i, j in np.ndindex(dy.shape):
        dbias[o] += dy[n, o, i, j]  # y[n, o, i, j] += bias[o]
    for at_y, at_weight, at_x in _conv2d_products(dy.shape, weight.shape, x.shape, stride, padding, dilation, groups):
        dx[at_x] += weight[at_weight] * dy[at_y]  # y[at_y] += weight[at_weight] * x[at_x]
        dweight[at_weight] += x[at_x] * dy[at_y]
    return dx, dweight, dbias


def frozen_batch_norm_forward(x, weight, bias, mean, var, eps):
    """Batch norm in eval mode: each channel's mean and var are given, (C,), as weight and bias; x (N, C, H, W) -> y."""
    x, weight, bias, mean, var, y = _float64(x, weight, bias, mean, var, np.zeros(x.shape))
    for n, c, h, w in np.ndindex(x.shape):
        xhat = (x[n, c, h, w] - mean[c]) / np.sqrt(var[c] + eps)
        y[n, c, h, w] = weight[c] * xhat + bias[c]
    return y


def frozen_batch_norm_backward(dy, x, weight, mean, var, eps):
    """Gradients of `frozen_batch_norm_forward`: dx, dweight, dbias. x reaches y in one way."""
    dy, x, weight, mean, var = _float64(dy, x, weight, mean, var)
    dx, dweight, dbias = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(weight.shape)
    for n, c, h, w in np.ndindex(x.shape):
        dbias[c] += dy[n, c, h, w]  # y = weight * xhat + bias
        dweight[c] += dy[n, c, h, w] * (x[n, c, h, w] - mean[c]) / np.sqrt(var[c] + eps)
        dx[n, c, h, w] += dy[n, c, h, w] * weight[c] / np.sqrt(var[c] + eps)  # xhat = (x - mean) / sqrt(var + eps)
    return dx, dweight, dbias


def batch_norm_forward(x, weight, bias, eps):
    """Ioffe and Szegedy 2015, Algorithm 1: x, weight (C,), bias (C,) -> y, each channel's mean and biased variance."""
    x, mean, var = _float64(x, np.zeros(x.shape[1]), np.zeros(x.shape[1]))
    m = x.size // x.shape[1]  # numbers in each channel
    for n, c, h, w in np.ndindex(x.shape):
        mean[c] += x[n, c, h, w] / m
    for n, c, h, w in np.ndindex(x.shape):
        var[c] += (x[n, c, h, w] - mean[c]) ** 2 / m
    return frozen_batch_norm_forward(x, weight, bias, mean, var, eps), mean, var


def batch_norm_backward(dy, x, weight, eps):
    """Gradients of `batch_norm_forward`: dx, dweight, dbias. x reaches y in three ways: also through var and mean."""
    dy, x, weight = _float64(dy, x, weight)
    _, mean, var = batch_norm_forward(x, weight, weight, eps)
    dx, dweight, dbias = frozen_batch_norm_backward(dy, x, weight, mean, var, eps)  # x by itself
    m, std, dmean, dstd = x.size // len(mean), np.sqrt(var + eps), np.zeros(len(mean)), np.zeros(len(mean))
    for n, c, h, w in np.ndindex(x.shape):
        dxhat = dy[n, c, h, w] * weight[c]  # y = weight * xhat + bias
        dstd[c] += -dxhat * (x[n, c, h, w] - mean[c]) / std[c] ** 2  # xhat = (x - mean) / std
        dmean[c] += -dxhat / std[c]
    dvar = dstd / (2 * std)  # std = sqrt(var + eps)
    for n, c, h, w in np.ndindex(x.shape):
        dx[n, c, h, w] += dvar[c] * 2 * (x[n, c, h, w] - mean[c]) / m  # var += (x - mean) ** 2 / m
        dmean[c] += -dvar[c] * 2 * (x[n, c, h, w] - mean[c]) / m  # adds up to 0, as Σ (x - mean) does
    for n, c, h, w in np.ndindex(x.shape):
        dx[n, c, h, w] += dmean[c] / m  # mean += x / m
    return dx, dweight, dbias


def running_statistics(running_mean, running_var, mean, var, count, momentum):
    """Averages for eval mode, (C,): `momentum` is the newest batch's part; var of `count` numbers becomes unbiased."""
    running_mean, running_var, mean, var = _float64(running_mean, running_var, mean, var)
    unbiased = var * count / (count - 1)
    return (1 - momentum) * running_mean + momentum * mean, (1 - momentum) * running_var + momentum * unbiased


def relu_forward(x):
    """Negative numbers of x become 0. NaN is not <= 0: it passes through, and stays visible."""
    y = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        y[at] = 0 if x[at] <= 0 else x[at]
    return y


def relu_backward(dy, x):
    """Where `relu_forward` took x, dy; where it took 0, nothing: so 0 at the kink x = 0."""
    dx = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        dx[at] += 0 if x[at] <= 0 else dy[at]  # y = 0 if x <= 0 else x
    return dx


def relu6_forward(x):
    """ReLU that ends at 6: Sandler et al. 2018, section 3. NaN passes through."""
    y = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        y[at] = 0 if x[at] <= 0 else 6 if x[at] >= 6 else x[at]
    return y


def relu6_backward(dy, x):
    """Where `relu6_forward` took x, dy; elsewhere nothing: so 0 at both kinks, x = 0 and x = 6."""
    dx = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        dx[at] += 0 if x[at] <= 0 else 0 if x[at] >= 6 else dy[at]  # y = 0 if x <= 0 else 6 if x >= 6 else x
    return dx


def _pool_windows(x_shape, kernel_size, stride, padding, ceil_mode, count_include_pad):
    """Along H, then along W: each window's pixels, as a slice, and how many places count as its length."""
    windows: list[list] = [[], []]
    for size, kernel, step, pad, axis in zip(x_shape[2:], kernel_size, stride, padding, windows, strict=True):
        room = size + pad - kernel  # where the last whole window may start; ceil_mode: one more, if it starts in x
        for start in range(-pad, min(room + step, size) if ceil_mode else room + 1, step):
            end = min(start + kernel, size + pad)  # what sticks out of the padding never counts
            first, last = max(start, 0), min(end, size)
            axis.append((slice(first, last), end - start if count_include_pad else last - first))
    return windows


def avg_pool2d_forward(x, kernel_size, stride, padding, ceil_mode, count_include_pad):
    """The mean of each window, x (N, C, H, W) -> y (N, C, OH, OW); padding at most half a kernel, as in PyTorch."""
    rows, columns = _pool_windows(x.shape, kernel_size, stride, padding, ceil_mode, count_include_pad)
    y = np.zeros((x.shape[0], x.shape[1], len(rows), len(columns)))
    for n, c, i, j in np.ndindex(y.shape):
        (hs, height), (ws, width) = rows[i], columns[j]
        y[n, c, i, j] = x[n, c, hs, ws].sum(dtype=np.float64) / (height * width)
    return y


def avg_pool2d_backward(dy, x, kernel_size, stride, padding, ceil_mode, count_include_pad):
    """dx of `avg_pool2d_forward`: each pixel of a window gets the same share, from each window that it is in."""
    dy, dx = _float64(dy, np.zeros(x.shape))
    rows, columns = _pool_windows(x.shape, kernel_size, stride, padding, ceil_mode, count_include_pad)
    for n, c, i, j in np.ndindex(dy.shape):
        (hs, height), (ws, width) = rows[i], columns[j]
        dx[n, c, hs, ws] += dy[n, c, i, j] / (height * width)  # y[n, c, i, j] = x[n, c, hs, ws].sum() / ...
    return dx


def global_avg_pool2d_forward(x):
    """The mean of each channel of each picture, x (N, C, H, W) -> y (N, C, 1, 1): one window, the whole picture."""
    return avg_pool2d_forward(x, x.shape[2:], (1, 1), (0, 0), False, False)


def global_avg_pool2d_backward(dy, x):
    """dx of `global_avg_pool2d_forward`."""
    return avg_pool2d_backward(dy, x, x.shape[2:], (1, 1), (0, 0), False, False)


def linear_forward(x, weight, bias):
    """Weighted sums of all features: x (N, F), weight (O, F), bias (O,) or None -> y (N, O)."""
    x, weight = _float64(x, weight)
    y = np.zeros((x.shape[0], weight.shape[0]))
    for n, o in np.ndindex(y.shape):
        y[n, o] += 0 if bias is None else bias[o]
        for f in range(x.shape[1]):
            y[n, o] += weight[o, f] * x[n, f]
    return y


def linear_backward(dy, x, weight):
    """Gradients of `linear_forward`: dx, dweight, dbias."""
    dy, x, weight = _float64(dy, x, weight)
    dx, dweight, dbias = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(weight.shape[0])
    for n, o in np.ndindex(dy.shape):
        dbias[o] += dy[n, o]  # y[n, o] += bias[o]
        for f in range(x.shape[1]):
            dx[n, f] += weight[o, f] * dy[n, o]  # y[n, o] += weight[o, f] * x[n, f]
            dweight[o, f] += x[n, f] * dy[n, o]
    return dx, dweight, dbias


def dropout_forward(x, keep, p):
    """Only what `keep` (bool, like x) keeps, scaled so that y is x on average: Srivastava et al. 2014, "inverted"."""
    x, y = _float64(x, np.zeros(x.shape))
    for at in np.ndindex(x.shape):
        y[at] = x[at] / (1 - p) if keep[at] else 0
    return y


def dropout_backward(dy, keep, p):
    """dx of `dropout_forward`: each y is a constant times its x, so each dy goes through the same constant."""
    return dropout_forward(dy, keep, p)


def _log_sum_exp(z):
    return max(z) + np.log(sum(np.exp(each) for each in z - max(z)))  # the largest exp is exp(0): none overflows


def cross_entropy_forward(logits, labels, label_smoothing):
    """Mean over N of -Σ wanted · log softmax(logits): logits (N, K), labels (N,); Szegedy et al. 2016, section 7."""
    logits, loss = _float64(logits, 0)
    for n, k in np.ndindex(logits.shape):
        wanted = (1 - label_smoothing) * (k == labels[n]) + label_smoothing / logits.shape[1]
        loss = loss + wanted / len(logits) * (_log_sum_exp(logits[n]) - logits[n, k])
    return loss


def cross_entropy_backward(logits, labels, label_smoothing):
    """Gradient of `cross_entropy_forward`: dlogits (N, K)."""
    logits, dlogits = _float64(logits, np.zeros(logits.shape))
    for n, k in np.ndindex(logits.shape):
        wanted = (1 - label_smoothing) * (k == labels[n]) + label_smoothing / logits.shape[1]
        dlogits[n, k] += -wanted / len(logits)  # loss += wanted / N * (log_sum_exp(logits) - logits[k])
        for j in range(logits.shape[1]):  # log_sum_exp(z) grows with z[j] by exp(z[j]) / Σ exp(z)
            dlogits[n, j] += wanted / len(logits) * np.exp(logits[n, j] - _log_sum_exp(logits[n]))
    return dlogits
