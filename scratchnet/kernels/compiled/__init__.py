"""Compiled kernels for the CPU: loops that Numba compiles (extra `fast`), with NumPy's own BLAS for their products.

What NumPy does in ten passes over memory a loop does in one or two, holds no lock of Python's, and reads like
`reference.py`: each line of a loop is one equation of the layer's file. A loop is called once for each thread and takes its
parts from a counter (`jit.everywhere`); parts are cut by shape alone, and no number is made by two of them, so that any
number of threads gives the same bits. Where a step goes through several layers, it takes a few channels at a time through
all of them (slabs.py), and their arrays live in the cache alone.

Sums: up to BLOCK numbers, or a row of pixels, are added in the dtype of the array, several at a time in the lanes of a
register; those sums are added in float64. Variances are of differences from a number near the mean, never of a mean of
squares.

To read: jit.py (how loops are compiled), rows.py (one row of pixels), convolve.py (one channel), blas.py (products), then
norm.py, depthwise.py, pointwise.py, front.py and block.py with slabs.py. program.py, lowering.py, walk.py, meeting.py and
lanes.py compute a folded network at inference.

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
