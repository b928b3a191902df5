"""Devices: NumPy or CuPy, which numbers they store, and how exactly a GPU multiplies.

This is the one file that imports cupy, and it does so only when a GPU is asked for.
"""

import functools
import glob
import os
import sys
import threading
from typing import NamedTuple

import numpy as np


class DeviceError(RuntimeError):
    """A device was asked for that this machine, or this installation, does not have."""


class Kind(NamedTuple):
    """What decides which version of a function computes: `"cpu"` or `"cuda"`, and the name of the dtype."""

    device: str
    dtype: str


def kind_of(x):
    """The `Kind` of an array."""
    return Kind(device_of(x), name_of(x.dtype))


@functools.cache
def name_of(dtype):
    """The name of a dtype, made once."""
    return dtype.name  # NumPy makes the name anew each time, which takes longer than a small layer


def get_array_module(x):
    """`numpy` or `cupy`, whichever made x: the module whose functions take x."""
    if isinstance(x, (np.ndarray, np.generic)):
        return np
    cupy = sys.modules.get("cupy")  # an array of cupy's exists only where cupy was imported
    return cupy if cupy is not None and isinstance(x, cupy.ndarray) else np


def zeros_like(x):
    """Zeros of the shape and dtype of x, where it lies."""
    return get_array_module(x).zeros_like(x)


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


def one_card(number):
    """Let this process see one of the machine's cards, before CuPy first asks which there are.

    Args:
        number: which of those that it may use (CUDA_VISIBLE_DEVICES, or all), counted over again where there are fewer.
    """
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = told.split(",") if told else [str(k) for k in range(len(glob.glob("/dev/nvidia[0-9]*")))]
    if len(cards) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[number % len(cards)]


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


# Precision ------------------------------------------------------------------------------------------------------------


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
    """Whether an array's numbers are stored in 16 bits. `kernels.cuda` says what then computes."""
    return x.dtype.name == "bfloat16"


_tf32 = False
_multiplying = threading.Lock()  # CuPy has one setting for the whole process: it is set for a product, then put back


class use_tf32:  # noqa: N801 (it is called like a function)
    """Whether the GPU may round what it multiplies in float32 matrix products to 10 bits, which is much faster (TF32).

    Sums are float32 either way. It takes an Ampere GPU or a newer one; older ones compute in float32. Holds for what the
    library computes from now on, or `with sn.use_tf32(True): …` for a while; arithmetic of your own is not touched.

    Raises:
        DeviceError: there is no GPU here.
    """

    def __init__(self, enabled):
        global _tf32
        import_cupy()
        self._before, _tf32 = _tf32, bool(enabled)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        global _tf32
        _tf32 = self._before


def tf32_enabled():
    """What `use_tf32` says."""
    return _tf32


def product(a, b, tf32=None):
    """a @ b by CuPy, of two matrices; `tf32` says how exactly, and is what `use_tf32` says where not given.

    `kernels.cuda.products` has the faster way, which needs none of CuPy's inside.
    """
    cupy = get_array_module(a)
    linalg = cupy._core._routines_linalg  # CuPy's own switch is CUPY_TF32 in the environment, read once
    wanted = linalg.COMPUTE_TYPE_TF32 if (_tf32 if tf32 is None else tf32) else linalg.COMPUTE_TYPE_DEFAULT
    with _multiplying:  # the product is only handed to the GPU here, so that nobody waits long
        before = cupy._core.get_compute_type(np.float32)
        cupy._core.set_compute_type(np.float32, wanted)
        try:
            return a @ b
        finally:
            cupy._core.set_compute_type(np.float32, before)
