"""From a training step to what a page holds: heat maps of one byte a number, exact numbers where numbers are read.

A heat map keeps b = round(127 · v / scale) + 128, or round(255 · v / scale) where nothing is negative; beyond `scale`,
below which all but a thousandth of the numbers are, the colour stays what it is there. Of an array's channels the first
ones are kept. What is packed is base64 of deflate of [float32 numbers][bytes]; the page's script reads it so.
"""

import base64
import zlib
from typing import Any

import numpy as np

BELOW = 0.999  # the share of the numbers that colours tell apart
FEW = 2048  # numbers of an array that are kept for each picture, however many channels that is
ROWS, COLUMNS = 64, 192  # of a weight's heat map, at most
MOST = 8  # channels that are named as those that a step changed most


def packed(numbers, levels):
    """Float32 numbers and bytes, as text."""
    data = np.ascontiguousarray(numbers, "<f4").tobytes() + np.ascontiguousarray(levels, np.uint8).tobytes()
    return base64.b64encode(zlib.compress(data, 9)).decode()


def quantised(array, signed):
    """(bytes, scale): heat map of an array."""
    size = np.abs(array)
    scale = float(np.quantile(size, BELOW)) or float(size.max()) or 1.0
    if signed:
        return np.clip(np.rint(array / scale * 127), -127, 127) + 128, scale
    return np.clip(np.rint(array / scale * 255), 0, 255), scale


def pack_array(array, shown, channels, is_gradient) -> dict[str, Any]:
    """Activations or gradients: the first channels of the first pictures, and what there is to say of all.

    Args:
        array: (N, C, H, W) or (N, F).
        shown: how many pictures.
        channels: how many channels, where they are of more than a few pixels.
        is_gradient: whether zero is in the middle of the colours in any case.
    """
    maps = array[:shown].reshape(shown, array.shape[1], *(array.shape[2:] or (1, 1)))
    kept = min(maps.shape[1], max(channels, FEW // (maps.shape[2] * maps.shape[3])))
    maps = maps[:, :kept]
    signed = bool(is_gradient or array.min() < 0)
    levels, scale = quantised(maps, signed)
    each = [maps.min(axis=(2, 3)), maps.max(axis=(2, 3)), maps.mean(axis=(2, 3), dtype=np.float64)]
    return {
        "shape": list(array.shape[1:]), "kept": kept, "signed": signed, "scale": scale, **said(array),
        "data": packed(np.stack(each, axis=-1), levels),  # (P, K, 3), (P, K, H, W)
    }  # fmt: skip


def said(array):
    """What is said of an array, in exact numbers."""
    exact = array.astype(np.float64)
    return {
        "min": float(array.min()), "max": float(array.max()), "rms": float(np.sqrt((exact * exact).mean())),
        "zeros": float((array == 0).mean()), "sixes": float((array == 6).mean()),
    }  # fmt: skip


def pack_change(change) -> dict[str, Any]:
    """A parameter: heat maps of its values and its gradient, and by how much the step changed it and each channel of it."""
    before, gradient, after = (np.asarray(part, np.float64) for part in change)
    sizes = [norms(part) for part in (before, gradient, after, after - before)]
    exact = (
        sizes if before.ndim > 1 else [*change, change.after - change.before]
    )  # of a channel its norm, or its number
    with np.errstate(all="ignore"):
        ratio = np.nan_to_num(sizes[3] / sizes[0], nan=0.0, posinf=0.0)
    top = [int(k) for k in np.argsort(-ratio, kind="stable")[:MOST] if ratio[k]]
    total = [float(np.sqrt((part * part).sum())) for part in (before, gradient, after, after - before)]
    shape = before.shape if before.ndim == 4 else (*before.shape, *[1] * (4 - before.ndim))
    maps = [part.reshape(shape)[:ROWS, :COLUMNS] for part in change[:2]]
    if shape[1] == 1:  # a grid of filters, or of numbers
        maps = [part.reshape(shape)[: ROWS * 16] for part in change[:2]]
    made = [quantised(part, True) for part in maps]
    return {
        "shape": list(before.shape), "rows": maps[0].shape[0], "columns": maps[0].shape[1], "cell": list(shape[2:]),
        "norm": total[0], "gradient": total[1], "after": total[2], "change": total[3],
        "top": [[k, float(ratio[k])] for k in top], "scales": [scale for _, scale in made],
        "data": packed(exact, np.stack([levels for levels, _ in made])),  # (4, O), (2, rows, columns, KH, KW)
    }  # fmt: skip


def norms(array):
    """√Σ² over all but the first axis: for each output channel one."""
    return np.sqrt((array * array).reshape(len(array), -1).sum(axis=1))
