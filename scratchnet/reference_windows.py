"""Windows and sets of numbers beyond MobileNetV2's, as loops over single numbers: read `reference.py` first.

Here too each backward quotes the forward line that it undoes. Images are (N, C, H, W); `kernel_size`, `stride`, `padding`
and `dilation` are pairs (along H, along W). Arguments may have any real dtype; results are new arrays in float64. Imported
by tests, and by what judges exercises.
"""

import numpy as np


def _float64(*arrays):
    return [np.asarray(array, dtype=np.float64) for array in arrays]


# Windows: max pooling, transposed convolution, pictures of another size -------------------------------------------------


def _pool_size(size, kernel, stride, padding, dilation, ceil_mode):
    """How many windows there are; of ceil_mode's last one, the start must not be in the padding behind the picture."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= size + padding else count


def _largest(x, n, c, i, j, kernel_size, stride, padding, dilation):
    """Where in x the first of the largest pixels of a window is, or the last NaN; None where it reads only padding."""
    at = None
    for kh, kw in np.ndindex(kernel_size):
        h = i * stride[0] + kh * dilation[0] - padding[0]
        w = j * stride[1] + kw * dilation[1] - padding[1]
        if 0 <= h < x.shape[2] and 0 <= w < x.shape[3]:
            if at is None or x[n, c, h, w] > x[at] or np.isnan(x[n, c, h, w]):
                at = n, c, h, w
    return at


def max_pool2d_forward(x, kernel_size, stride, padding, dilation, ceil_mode):
    """The largest pixel under each window: x (N, C, H, W) -> y (N, C, OH, OW)."""
    (x,) = _float64(x)
    sizes = zip(x.shape[2:], kernel_size, stride, padding, dilation, strict=True)
    y = np.full((*x.shape[:2], *(_pool_size(*size, ceil_mode) for size in sizes)), -np.inf)
    for n, c, i, j in np.ndindex(y.shape):
        at = _largest(x, n, c, i, j, kernel_size, stride, padding, dilation)
        if at is not None:
            y[n, c, i, j] = x[at]
    return y


def max_pool2d_backward(dy, x, kernel_size, stride, padding, dilation):
    """Gradient of `max_pool2d_forward`: dx."""
    dy, x, dx = _float64(dy, x, np.zeros(x.shape))
    for n, c, i, j in np.ndindex(dy.shape):
        at = _largest(x, n, c, i, j, kernel_size, stride, padding, dilation)
        if at is not None:
            dx[at] += dy[n, c, i, j]  # y[n, c, i, j] = x[at]
    return dx


def _conv_transpose2d_products(y_shape, weight_shape, x_shape, stride, padding, dilation, groups):
    """Every multiplication of a transposed convolution, as three places: in y, in weight, in x."""
    for n, c, i, j in np.ndindex(x_shape):
        for k, kh, kw in np.ndindex(weight_shape[1:]):
            o = c // (x_shape[1] // groups) * weight_shape[1] + k  # the outputs of c's own group
            h = i * stride[0] + kh * dilation[0] - padding[0]
            w = j * stride[1] + kw * dilation[1] - padding[1]
            if 0 <= h < y_shape[2] and 0 <= w < y_shape[3]:  # what falls outside is left out
                yield (n, o, h, w), (c, k, kh, kw), (n, c, i, j)


def conv_transpose2d_forward(x, weight, bias, stride, padding, output_padding, dilation, groups):
    """Write a window for each pixel of x (N, C, H, W); weight (C, O/groups, KH, KW), bias (O,) or None -> y."""
    x, weight = _float64(x, weight)
    oh = (x.shape[2] - 1) * stride[0] - 2 * padding[0] + dilation[0] * (weight.shape[2] - 1) + output_padding[0] + 1
    ow = (x.shape[3] - 1) * stride[1] - 2 * padding[1] + dilation[1] * (weight.shape[3] - 1) + output_padding[1] + 1
    y = np.zeros((x.shape[0], weight.shape[1] * groups, oh, ow))
    for n, o, h, w in np.ndindex(y.shape):
        y[n, o, h, w] += 0 if bias is None else bias[o]
    options = stride, padding, dilation, groups
    for at_y, at_weight, at_x in _conv_transpose2d_products(y.shape, weight.shape, x.shape, *options):
        y[at_y] += weight[at_weight] * x[at_x]
    return y


def conv_transpose2d_backward(dy, x, weight, stride, padding, dilation, groups):
    """Gradients of `conv_transpose2d_forward`: dx, dweight, dbias."""
    dy, x, weight = _float64(dy, x, weight)
    dx, dweight, dbias = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(dy.shape[1])
    for n, o, h, w in np.ndindex(dy.shape):
        dbias[o] += dy[n, o, h, w]  # y[n, o, h, w] += bias[o]
    options = stride, padding, dilation, groups
    for at_y, at_weight, at_x in _conv_transpose2d_products(dy.shape, weight.shape, x.shape, *options):
        dx[at_x] += weight[at_weight] * dy[at_y]  # y[at_y] += weight[at_weight] * x[at_x]
        dweight[at_weight] += x[at_x] * dy[at_y]
    return dx, dweight, dbias


def adaptive_avg_pool2d_forward(x, output_size):
    """The mean of each of OH × OW bins that cover x (N, C, H, W), and overlap where the sizes do not divide."""
    x, y = _float64(x, np.zeros((*x.shape[:2], *output_size)))
    for at_y, at_x, count in _bins(y.shape, x.shape):
        y[at_y] += x[at_x] / count
    return y


def adaptive_avg_pool2d_backward(dy, x):
    """Gradient of `adaptive_avg_pool2d_forward`: dx."""
    dy, dx = _float64(dy, np.zeros(x.shape))
    for at_y, at_x, count in _bins(dy.shape, dx.shape):
        dx[at_x] += dy[at_y] / count  # y[at_y] += x[at_x] / count
    return dx


def _bins(y_shape, x_shape):
    """Every pixel of every bin: its place in y, in x, and how many pixels the bin has."""
    (oh, ow), (height, width) = y_shape[2:], x_shape[2:]
    for n, c, i, j in np.ndindex(y_shape):
        rows = range(int(np.floor(i * height / oh)), int(np.ceil((i + 1) * height / oh)))
        columns = range(int(np.floor(j * width / ow)), int(np.ceil((j + 1) * width / ow)))
        for h in rows:
            for w in columns:
                yield (n, c, i, j), (n, c, h, w), len(rows) * len(columns)


def upsample_forward(x, output_size, bilinear, align_corners):
    """Pictures of another size: for each pixel of y the place that it comes from in x, and the pixels of x around that."""
    x, y = _float64(x, np.zeros((*x.shape[:2], *output_size)))
    for at_y, at_x, weight in _neighbours(y.shape, x.shape, bilinear, align_corners):
        y[at_y] += weight * x[at_x]
    return y


def upsample_backward(dy, x, bilinear, align_corners):
    """Gradient of `upsample_forward`: dx."""
    dy, dx = _float64(dy, np.zeros(x.shape))
    for at_y, at_x, weight in _neighbours(dy.shape, dx.shape, bilinear, align_corners):
        dx[at_x] += weight * dy[at_y]  # y[at_y] += weight * x[at_x]
    return dx


def _neighbours(y_shape, x_shape, bilinear, align_corners):
    """Every pixel of y and every pixel of x that it is made of, and its weight."""
    for n, c, i, j in np.ndindex(y_shape):
        place_h = _place(i, x_shape[2], y_shape[2], bilinear, align_corners)
        place_w = _place(j, x_shape[3], y_shape[3], bilinear, align_corners)
        for h, w in np.ndindex(x_shape[2:]):
            weight = max(0, 1 - abs(place_h - h)) * max(0, 1 - abs(place_w - w))  # a tent around the place
            if weight > 0:
                yield (n, c, i, j), (n, c, h, w), weight


def _place(p, size, count, bilinear, align_corners):
    """Where pixel p of `count` comes from among `size`: a whole number where the nearest is taken."""
    if not bilinear:
        return p * size // count
    if align_corners:
        return p * (size - 1) / (count - 1) if count > 1 else 0
    return min(max((p + 0.5) * size / count - 0.5, 0), size - 1)


# Sets of numbers: layer and group norm ----------------------------------------------------------------------------------


def normalise_forward(x, sets, places, weight, bias, eps):
    """Every set of x to mean 0 and variance 1, then y = weight · x̂ + bias.

    `sets` and `places` are like x: whose set each number belongs to, and which number of weight and bias, (P,), is for it.
    """
    x, weight, bias, y = _float64(x, weight, bias, np.zeros(x.shape))
    mean, std, _ = _moments(x, sets, eps)
    for at in np.ndindex(x.shape):
        xhat = (x[at] - mean[sets[at]]) / std[sets[at]]
        y[at] = weight[places[at]] * xhat + bias[places[at]]
    return y


def normalise_backward(dy, x, sets, places, weight, eps):
    """Gradients of `normalise_forward`: dx, dweight, dbias. x reaches y in three ways, as in `batch_norm_backward`."""
    dy, x, weight = _float64(dy, x, weight)
    mean, std, count = _moments(x, sets, eps)
    dx, dweight, dbias = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(weight.shape)
    dmean, dstd = np.zeros(mean.shape), np.zeros(mean.shape)
    for at in np.ndindex(x.shape):
        s, p = sets[at], places[at]
        dbias[p] += dy[at]  # y = weight * xhat + bias
        dweight[p] += dy[at] * (x[at] - mean[s]) / std[s]
        dxhat = dy[at] * weight[p]
        dx[at] += dxhat / std[s]  # xhat = (x - mean) / std
        dmean[s] += -dxhat / std[s]
        dstd[s] += -dxhat * (x[at] - mean[s]) / std[s] ** 2
    for at in np.ndindex(x.shape):
        s = sets[at]
        dvar = dstd[s] / (2 * std[s])  # std = sqrt(var + eps)
        dx[at] += dvar * 2 * (x[at] - mean[s]) / count[s]  # var += (x - mean) ** 2 / count; Σ (x - mean) is 0
        dx[at] += dmean[s] / count[s]  # mean += x / count
    return dx, dweight, dbias


def _moments(x, sets, eps):
    """Mean, √(variance + eps) and count of each set."""
    mean, var, count = np.zeros((3, sets.max() + 1))
    for at in np.ndindex(x.shape):
        count[sets[at]] += 1
    for at in np.ndindex(x.shape):
        mean[sets[at]] += x[at] / count[sets[at]]
    for at in np.ndindex(x.shape):
        var[sets[at]] += (x[at] - mean[sets[at]]) ** 2 / count[sets[at]]
    return mean, np.sqrt(var + eps), count
