"""Compiled kernels for the CPU: the functions that are passes over memory, as loops that Numba compiles (extra `fast`).

What NumPy does in ten passes a loop does in one or two, holds no lock of Python's, and reads like `reference.py`: each
line of a loop is one equation of the layer's file. Channels are cut into parts for the threads (`jit.channels`), and no
sum goes over more than one channel, so that any number of threads gives the same bits.

Sums: up to BLOCK numbers, or a row of pixels, are added in the dtype of the array, several at a time in the lanes of a
register; those sums are added in float64. Variances are of differences from a mean, never of a mean of squares.

Nothing here is imported before a compiled kernel is chosen: importing Numba takes 0.2 s.
"""

import functools
import importlib
import importlib.util
import warnings

PRESENT = importlib.util.find_spec("numba") is not None


@functools.cache
def why_not():
    """Why nothing can be compiled here, or None where it can."""
    if not PRESENT:
        return "Numba is not installed"
    try:
        importlib.import_module("numba")
    except ImportError as error:  # it refuses a NumPy that is newer than it knows
        why = f"Numba cannot be imported ({error})"
        warnings.warn(f"{why}: computing with NumPy's kernels", RuntimeWarning, stacklevel=2)
        return why
    return None


@functools.cache
def multiplies():
    """Whether compiled loops can multiply matrices (blas.py)."""
    if why_not():
        return False
    blas = importlib.import_module(f"{__name__}.blas").blas
    return all(blas(dtype) is not None for dtype in ("float32", "float64"))
