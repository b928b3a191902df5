"""The optimizers' updates, compiled (training/optim.py, adaptive.py): one pass over a parameter, gradient and slots.

A network has some hundred parameters, and a call takes longer than the arithmetic on most of them: all of a `Group` are
updated in one call, which is given their addresses. They are cut into pieces, of which each thread takes the next.
"""

import math

import numpy as np

from scratchnet.kernels.compiled.jit import ZERO, bare, everywhere, jit, numbers_at, take
from scratchnet.kernels.cpu import optimizer as in_numpy

PIECE = 1 << 14  # numbers
COST = 8  # of a number, in multiply-adds (`jit.everywhere`)


def sgd_updates(group, lr, momentum, nesterov):
    """One pass, and one call."""
    table, like, rest = _pieces(group)
    for (data, grad, *velocity), weight_decay in rest:
        in_numpy.sgd_update(data, grad, velocity[0] if velocity else None, lr, momentum, nesterov, weight_decay)
    if len(table):
        numbers = [like.dtype.type(number) for number in (lr, momentum, _decay(group))]
        velocities = table.shape[1] == 5
        everywhere(_sgd_all, len(table), len(table) * PIECE * COST, table, like, velocities, *numbers, nesterov)


def rmsprop_updates(group, lr, alpha, eps, momentum, centered):
    """One pass, and one call."""
    table, like, rest = _pieces(group)
    for (data, grad, square, *others), weight_decay in rest:
        mean, velocity = others[0] if centered else None, others[-1] if momentum else None
        in_numpy.rmsprop_update(data, grad, square, mean, velocity, lr, alpha, eps, momentum, weight_decay)
    if len(table):
        numbers = tuple(map(like.dtype.type, (lr, alpha, 1 - alpha, eps, momentum, _decay(group))))
        flags = bool(centered), bool(momentum)
        everywhere(_rmsprop_all, len(table), len(table) * PIECE * COST, table, like, numbers, *flags)


def adam_updates(group, step, lr, betas, eps, decoupled):
    """One pass, and one call."""
    table, like, rest = _pieces(group)
    for (data, grad, mean, square), weight_decay in rest:
        if decoupled and weight_decay:
            data *= 1 - lr * weight_decay  # (ADAMW.1)
        in_numpy.adam_update(data, grad, mean, square, step, lr, betas, eps, 0.0 if decoupled else weight_decay)
    if len(table):
        decay = _decay(group)
        numbers = _adam_numbers(like.dtype, step, lr, betas, eps, 1 - lr * decay if decoupled else decay)
        everywhere(_adam_all, len(table), len(table) * PIECE * COST, table, like, numbers, decoupled)


def _decay(group):
    """The weight decay, where there is one; the table says which parameters it is for."""
    return max(weight_decay for _, weight_decay in group)


def _pieces(group):
    """A row (addresses of data, grad and slots; how many numbers; whether weight decay applies) for each piece.

    Returns:
        The rows; an array of the dtype that they are of; and the entries of the group that are in no row: not in one piece
        in memory, not to be written, or of another dtype than the first.
    """
    if group.known is None:
        like, rows, rest = np.empty(0, group[0][0][0].dtype), [], []
        for arrays, weight_decay in group:
            if not all(array.flags.carray and array.dtype == like.dtype and array.dtype.isnative for array in arrays):
                rest.append((arrays, weight_decay))
                continue
            size, addresses = arrays[0].size, [array.ctypes.data for array in arrays]
            for k in range(0, size, PIECE):
                there = [address + k * like.itemsize for address in addresses]
                rows.append([*there, min(PIECE, size - k), weight_decay != 0])
        group.known = np.array(rows, np.int64).reshape(len(rows), -1), like, rest
    return group.known


def _adam_numbers(dtype, step, lr, betas, eps, weight_decay):
    beta1, beta2 = betas
    averages, rate = (beta1, 1 - beta1, beta2, 1 - beta2), lr / (1 - beta1**step)
    numbers = *averages, 1 / math.sqrt(1 - beta2**step), eps, rate, weight_decay
    return tuple(map(dtype.type, numbers))


@jit
def _sgd_all(counter, table, like, velocities, lr, momentum, weight_decay, nesterov):
    table, like = bare(table), bare(like)
    k = take(counter)
    while k < len(table):
        row = table[k]
        size, decays = row[-2], row[-1] != 0
        data, grad = numbers_at(row[0], size, like), numbers_at(row[1], size, like)
        if velocities:
            _sgd(data, grad, numbers_at(row[2], size, like), lr, momentum, nesterov, decays, weight_decay)
        else:
            _sgd(data, grad, None, lr, momentum, nesterov, decays, weight_decay)
        k = take(counter)


@jit
def _rmsprop_all(counter, table, like, numbers, centered, with_momentum):
    table, like = bare(table), bare(like)
    k = take(counter)
    while k < len(table):
        row = table[k]
        size, decays = row[-2], row[-1] != 0
        data, grad, square = (
            numbers_at(row[0], size, like),
            numbers_at(row[1], size, like),
            numbers_at(row[2], size, like),
        )
        mean, velocity = numbers_at(row[3 if centered else 2], size, like), numbers_at(row[len(row) - 3], size, like)
        _rmsprop(data, grad, square, mean, velocity, numbers, decays, centered, with_momentum)
        k = take(counter)


@jit
def _adam_all(counter, table, like, numbers, decoupled):
    table, like = bare(table), bare(like)
    k = take(counter)
    while k < len(table):
        row = table[k]
        size, decays = row[4], row[5] != 0
        data, grad = numbers_at(row[0], size, like), numbers_at(row[1], size, like)
        mean, square = numbers_at(row[2], size, like), numbers_at(row[3], size, like)
        if decoupled and decays:
            for i in range(size):
                data[i] *= numbers[-1]  # (ADAMW.1), all of its factor
        _adam(data, grad, mean, square, numbers, decays and not decoupled)
        k = take(counter)


@jit
def _sgd(data, grad, velocity, lr, momentum, nesterov, decays, weight_decay):
    for i in range(data.size):
        g = grad[i]
        if decays:
            g += weight_decay * data[i]  # (SGD.1)
        d = g
        if velocity is not None:
            v = momentum * velocity[i] + g  # (SGD.2)
            velocity[i] = v
            d = g + momentum * v if nesterov else v  # (SGD.3)
        data[i] -= lr * d  # (SGD.4)


@jit
def _rmsprop(data, grad, square, mean, velocity, numbers, decays, centered, with_momentum):
    """Of mean and velocity nothing is read or written where there are none."""
    lr, alpha, rest, eps, momentum, weight_decay = numbers
    for i in range(data.size):
        g = grad[i]
        if decays:
            g += weight_decay * data[i]  # (RMS.1)
        s = alpha * square[i] + rest * (g * g)  # (RMS.2)
        square[i] = s
        if centered:
            m = alpha * mean[i] + rest * g  # (RMS.3)
            mean[i] = m
            s -= m * m
            if s < ZERO:
                s = s * ZERO  # (RMS.4)
        d = g / (np.sqrt(s) + eps)  # (RMS.5)
        if with_momentum:
            d += momentum * velocity[i]  # (RMS.6)
            velocity[i] = d
        data[i] -= lr * d  # (RMS.7)


@jit
def _adam(data, grad, mean, square, numbers, decays):
    beta1, rest1, beta2, rest2, unbias, eps, rate, weight_decay = numbers
    for i in range(data.size):
        g = grad[i]
        if decays:
            g += weight_decay * data[i]  # (ADAM.1)
        m = beta1 * mean[i] + rest1 * g  # (ADAM.2)
        s = beta2 * square[i] + rest2 * (g * g)  # (ADAM.3)
        mean[i] = m
        square[i] = s
        data[i] -= rate * (m / (np.sqrt(s) * unbias + eps))  # (ADAM.4), (ADAM.5)
