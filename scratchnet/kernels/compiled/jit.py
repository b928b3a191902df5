"""How loops are compiled, and into which parts their channels are cut.

Rules for loops, each measured: sums are only vectorised where their order may change ("reassoc"); numbers in a float32 loop
are float32, so scalars come in arrays or in the array's dtype; inner loops go over slices that were taken outside of them;
conditions are joined by `&` and `|`. A file's loops call none of another file: Numba's cache would not see those change.

The mask multiplies, as in layers/activation.py: a dy that is NaN or infinite is seen further on, even where y was held.
"""

from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from scratchnet.parallel.cuts import shares

NUMBERS: Any = np.float32(0), np.float32(1), np.float32(6)  # in a float64 loop they widen, and are exact
ZERO, ONE, SIX = NUMBERS
BLOCK = 1 << 12  # numbers that are added in the array's own dtype
PARTS = 8  # of the channels: some for each thread, and few enough that a call costs nothing beside its work


def jit(function):
    """The function, to be compiled for the dtype that it is first called with, without Python's lock.

    What is compiled is kept on disk (where Numba's NUMBA_CACHE_DIR says, else beside the source, else in the user's cache
    folder), or only in this process where none of these can be written.
    """
    options = {"nogil": True, "fastmath": {"contract", "reassoc"}, "error_model": "numpy"}
    compiler: Any = numba.njit
    try:
        return compiler(cache=True, **options)(function)
    except RuntimeError:
        return compiler(**options)(function)


if vars(numba.config)["DISABLE_JIT"]:  # Numba's own switch: the loops run as the Python that they are

    def bare(array):
        """The array."""
        return array

else:

    @intrinsic
    def bare(typing_context, array):
        """The same memory as an array that owns nothing: a slice of it counts no references, which costs on short rows.

        Whoever calls the kernel holds the owner for as long.
        """

        def code(context, builder, signature, arguments):
            kind = make_array(signature.args[0])
            owner, view = kind(context, builder, arguments[0]), kind(context, builder)
            parts = {"data": owner.data, "shape": owner.shape, "strides": owner.strides, "itemsize": owner.itemsize}
            return populate_array(view, **parts, meminfo=None)._getvalue()

        return array(array), code


def channels(array, cost):
    """The channels of an array (C, …) in parts, (first, end) each; one part where a second thread would not pay.

    Args:
        array: of which a kernel works on every number.
        cost: of a number, in the unit of `cuts.py`: multiply-adds of a matrix product.
    """
    parts = shares(len(array), array[0].size * cost, PARTS)
    return [(part.start, part.stop) for part in parts]
