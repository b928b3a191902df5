"""Arrays: how an activation lies in memory, and on which machine it lies.

Shapes are (N, C, H, W) everywhere, as in PyTorch. In memory the channel axis is outermost and the batch axis
innermost ("channel-major", the order of cuda-convnet): seen as (C, H, W, N) the array is C-contiguous. An activation is
then a matrix with one row per channel, and that matrix is a *view*, so every layer is short arithmetic on it:

    (N, C, H, W)  ->  as_maps    (C, H, W, N)       the axes in the order of memory
                  ->  as_matrix  (C, M)             M = H·W·N
                  <-  as_images                     back to (N, C, H, W)

An array in any other memory order gives the same values: the first two copy it where a view is impossible.
This is the one file that imports cupy, and it does so only when a GPU is asked for.
"""

import sys
from contextlib import contextmanager

import numpy as np


class DeviceError(RuntimeError):
    """A device was asked for that this machine, or this installation, does not have."""


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


def get_array_module(x):
    """`numpy` or `cupy`, whichever made x: the module whose functions take x."""
    if isinstance(x, (np.ndarray, np.generic)):
        return np
    cupy = sys.modules.get("cupy")  # an array of cupy's exists only where cupy was imported
    return cupy if cupy is not None and isinstance(x, cupy.ndarray) else np


def is_array(x):
    """Whether x is an array that the layers compute on: NumPy's or CuPy's."""
    return isinstance(x, np.ndarray) or get_array_module(x) is not np


def device_of(x):
    """`"cpu"` for a NumPy array, `"cuda"` for a CuPy array."""
    return "cpu" if get_array_module(x) is np else "cuda"


def import_cupy():
    """The cupy module, on a machine where it can compute.

    Raises:
        DeviceError: CuPy is missing or finds no GPU; the message says which and what to install.
    """
    try:
        import cupy
    except ImportError as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip(" =")]
        reason = said[-1] if said else "no reason given"  # CuPy's own message fills a page and ends in the cause
        raise DeviceError(
            f"device 'cuda' needs CuPy, which cannot be imported ({reason}): "
            "install the extra cuda12 or cuda13, or use device 'cpu'"
        ) from None
    if not cupy.cuda.is_available():
        raise DeviceError("device 'cuda' needs an NVIDIA GPU with its driver, and CuPy finds none: use device 'cpu'")
    return cupy


def bfloat16_dtype():
    """NumPy's dtype for the upper half of a float32: its range, and 8 bits of precision.

    Raises:
        DeviceError: ml_dtypes, which NumPy and CuPy have it from, is not installed.
    """
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise DeviceError("bfloat16 needs ml_dtypes: install the extra bf16, or use --precision tf32") from None
    return np.dtype(bfloat16)


def is_bfloat16(x):
    """Whether an array's numbers are stored in 16 bits. `kernels.gpu_bfloat16` says what then computes."""
    return x.dtype.name == "bfloat16"


def use_tf32(enabled):
    """Whether the GPU may round what it multiplies in float32 matrix products to 10 bits, which is much faster (TF32).

    Sums are float32 either way. It takes an Ampere GPU or a newer one; older ones compute in float32.

    Raises:
        DeviceError: there is no GPU here.
    """
    _set_precision(import_cupy(), enabled)


def _set_precision(cupy, tf32):
    linalg = cupy._core._routines_linalg  # CuPy's own switch is CUPY_TF32 in the environment, read once
    kind = linalg.COMPUTE_TYPE_TF32 if tf32 else linalg.COMPUTE_TYPE_DEFAULT
    cupy._core.set_compute_type(np.float32, kind)


@contextmanager
def full_precision(xp):
    """Matrix products of xp, which is CuPy, in float32 whatever `use_tf32` says."""
    before = xp._core.get_compute_type(np.float32)
    _set_precision(xp, tf32=False)
    try:
        yield
    finally:
        xp._core.set_compute_type(np.float32, before)


def resolve_device(device):
    """`"auto"`, `"cpu"` or `"cuda"` -> the device to use; auto takes the GPU where there is one that works.

    Raises:
        DeviceError: cuda was asked for and cannot be had.
        ValueError: any other name.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    if device == "cpu":
        return device
    try:
        import_cupy()
    except DeviceError:
        if device == "cuda":
            raise
        return "cpu"
    return "cuda"


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


def require_device(device):
    """Raise ValueError unless device is the name of one."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")


def same_kind(x, parameter):
    """Why x cannot be computed with a parameter's array, as half a sentence, or None when it can."""
    if device_of(x) != device_of(parameter):
        return (
            f"x is on {device_of(x)} and the parameters are on {device_of(parameter)}: "
            f"move one with sn.to_device(x, {device_of(parameter)!r}) or module.to({device_of(x)!r})"
        )
    if x.dtype != parameter.dtype and not (is_bfloat16(x) and parameter.dtype == np.float32):
        return (
            f"x is {x.dtype} and the parameters are {parameter.dtype}: "
            f"convert one with x.astype({str(parameter.dtype)!r}) or module.astype({str(x.dtype)!r})"
        )
    return None
