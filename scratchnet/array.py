"""Arrays: how an activation lies in memory.

Shapes are (N, C, H, W) everywhere, as in PyTorch. In memory the channel axis is outermost and the batch axis
innermost ("channel-major", the order of cuda-convnet): seen as (C, H, W, N) the array is C-contiguous. An activation is
then a matrix with one row per channel, and that matrix is a *view*, so every layer is short arithmetic on it:

    (N, C, H, W)  ->  as_maps    (C, H, W, N)       the axes in the order of memory
                  ->  as_matrix  (C, M)             M = H·W·N
                  <-  as_images                     back to (N, C, H, W)

An array in any other memory order gives the same values: the first two copy it where a view is impossible.
"""

import threading

from scratchnet.device import device_of, get_array_module, import_cupy, is_array, require_device


def as_maps(x):
    """Axes in memory order: (N, C, H, W) -> (C, H, W, N), C-contiguous; a view when x is channel-major."""
    return get_array_module(x).ascontiguousarray(x.transpose(*range(1, x.ndim), 0))


def as_matrix(x):
    """One row per channel: (N, C, H, W) -> (C, H·W·N), or (N, F) -> (F, N); a view when x is channel-major."""
    return as_maps(x).reshape(x.shape[1], -1)


def as_images(rows, like=None):
    """Undo `as_maps`, (C, H, W, N) -> (N, C, H, W); with `like`, undo `as_matrix`: N, H and W are those of `like`."""
    if like is not None:
        rows = rows.reshape(-1, *like.shape[2:], like.shape[0])  # (C, M) -> (C, H, W, N)
    return rows.transpose(rows.ndim - 1, *range(rows.ndim - 1))


def to_device(thing, device):
    """Bring an array, or a module with all that it holds, to a device.

    Args:
        thing: a NumPy or CuPy array, or a `Module` (changed in place).
        device: `"cpu"` or `"cuda"`.

    Returns:
        The array on that device (itself where it is there already; else C-contiguous if it was, else channel-major), or
        the module.

    Raises:
        DeviceError: there is no such device here.
        ValueError: an unknown device name.
    """
    if not is_array(thing):
        return thing.to(device)
    require_device(device)
    if device_of(thing) == device:
        return thing
    convert = import_cupy().asarray if device == "cuda" else (lambda array: array.get())
    return convert(thing) if thing.flags.c_contiguous else as_images(convert(as_maps(thing)))


# What a step draws ----------------------------------------------------------------------------------------------------

_of_thread = threading.local()


class drawing:  # noqa: N801 (it is called like a function)
    """While this thread learns a step, or records it: takes down what `drawn` is asked for, or hands out arrays for it.

    Args:
        arrays: to hand out, in order, each of which then finds its numbers before every replay; None to draw as ever.

    Attributes:
        asked: (draw, shape, dtype) of each call, in order.
    """

    def __init__(self, arrays=None):
        self.asked: list = []
        self._arrays = None if arrays is None else iter(arrays)

    def __enter__(self):
        self._before, _of_thread.drawing = getattr(_of_thread, "drawing", None), self
        return self

    def __exit__(self, *_):
        _of_thread.drawing = self._before

    def give(self, draw, shape, dtype, device):
        """What `drawn` returns."""
        self.asked.append((draw, shape, dtype))
        if self._arrays is None:
            return to_device(draw(), device)
        array = next(self._arrays, None)
        if array is None or array.shape != shape or array.dtype != dtype:
            raise RuntimeError(f"something of shape {shape} is drawn, which was not when the step was learnt")
        return array


def drawn(draw, shape, dtype, device):
    """What `draw()` makes on the host, on a device.

    Args:
        draw: makes a NumPy array, from a generator, say: another one in every step.
        shape, dtype: of it.
        device: `"cpu"` or `"cuda"`.
    """
    now = getattr(_of_thread, "drawing", None)
    return now.give(draw, shape, dtype, device) if now else to_device(draw(), device)
