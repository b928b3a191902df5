"""How loops are compiled, kept on disk, and handed to the threads.

Rules for loops, each measured: sums are only vectorised where their order may change ("reassoc"); numbers in a float32 loop
are float32, so scalars come in arrays or in the array's dtype; inner loops go over slices that were taken outside of them;
conditions are joined by `&` and `|`.

The mask multiplies, as in layers/activation.py: a dy that is NaN or infinite is seen further on, even where y was held.

One call of Python's is made for each thread, not for each part: `everywhere` starts a loop on all threads, and the loop
takes the number of its next part from a counter in memory (`take`) until there is none. Which thread does a part decides
nothing: parts are cut by shape alone, and write to places of their own.
"""

import contextlib
import ctypes
import hashlib
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import event, types
from numba.extending import intrinsic
from numba.misc.appdirs import user_cache_dir
from numba.np.arrayobj import make_array, populate_array

from scratchnet.kernels.cpu.buffers import empty
from scratchnet.parallel import cuts, threads

NUMBERS: Any = np.float32(0), np.float32(1), np.float32(6)  # in a float64 loop they widen, and are exact
ZERO, ONE, SIX = NUMBERS
BLOCK = 1 << 12  # numbers that are added in the array's own dtype
PYTHON = bool(vars(numba.config)["DISABLE_JIT"])  # Numba's own switch: the loops run as the Python that they are


def jit(function, fastmath=frozenset(("contract", "reassoc"))):
    """The function, to be compiled for the dtype that it is first called with, without Python's lock.

    `fastmath` is what the compiler may do to sums: LLVM's words for one rounding less, and for another order.

    What is compiled is kept on disk (`cache_folder`), or only in this process where nothing can be written.
    """
    options = {"nogil": True, "fastmath": set(fastmath), "error_model": "numpy"}
    compiler: Any = numba.njit
    settings: Any = numba.config
    before = settings.CACHE_DIR
    try:
        settings.CACHE_DIR = str(_FOLDER or "")
        return compiler(cache=_FOLDER is not None, **options)(function)
    except (RuntimeError, OSError):
        return compiler(**options)(function)
    finally:
        settings.CACHE_DIR = before


def exact(function):
    """The same, every operation rounded by itself: the bits are NumPy's."""
    return jit(function, ())


def cache_folder(*places):
    """The folder for what these very sources become: the first that can be written.

    Numba looks only at the file of the function itself, and loops call those of other files: so the name has a hash of all.

    Args:
        places: where it may lie; by default where Numba's NUMBA_CACHE_DIR says, or else beside the sources, or in the
            user's cache folder.

    Raises:
        OSError: none can be written.
    """
    here, settings = Path(__file__).parent, vars(numba.config)
    told = (settings["CACHE_DIR"],) if settings["CACHE_DIR"] else (here / "__pycache__", user_cache_dir("scratchnet"))
    texts = (path.read_bytes() for path in sorted(here.glob("*.py")))
    name = f"scratchnet-{hashlib.sha256(b''.join(texts)).hexdigest()[:16]}"
    for place in places or told:
        with contextlib.suppress(OSError):
            folder = Path(place) / name
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    raise OSError("no folder for compiled code can be written")


_FOLDER: Path | None = None
with contextlib.suppress(OSError):
    _FOLDER = cache_folder()


class _Announcement(event.Listener):
    """Says at a terminal, once, what takes so long the first time."""

    def on_start(self, begun):  # noqa: D102
        module = begun.data["dispatcher"].py_func.__module__ or ""
        if self.due and module.startswith(__package__) and sys.stderr and sys.stderr.isatty():
            self.due = False
            print("scratchnet: compiling loops for this CPU, this first time only", file=sys.stderr, flush=True)

    def on_end(self, ended):  # noqa: D102
        pass

    due = True


event.register("numba:compile", _Announcement())

if PYTHON:
    _one_by_one = threading.Lock()

    def bare(array):
        """The array."""
        return array

    def take(counter):
        """The number that the counter shows, which then shows the next."""
        with _one_by_one:
            counter[0] += 1
            return counter[0] - 1

    def numbers_at(address, size, like):
        """Memory as an array."""
        memory: Any = (ctypes.c_char * int(size * like.itemsize)).from_address(int(address))
        return np.frombuffer(memory, like.dtype)

else:

    @intrinsic
    def bare(typing_context, array):
        """The same memory as an array that owns nothing: a slice of it counts no references, which costs on short rows.

        Whoever calls the kernel holds the owner for as long. To the compiler one that is read-only becomes like any other.
        """

        def code(context, builder, signature, arguments):
            kind = make_array(signature.args[0])
            owner, view = kind(context, builder, arguments[0]), kind(context, builder)
            parts = {"data": owner.data, "shape": owner.shape, "strides": owner.strides, "itemsize": owner.itemsize}
            return populate_array(view, **parts, meminfo=None)._getvalue()

        return array.copy(readonly=False)(array), code

    @intrinsic
    def take(typing_context, counter):
        """The number that the counter shows, which then shows the next: no two threads are given the same."""

        def code(context, builder, signature, arguments):
            shown = make_array(signature.args[0])(context, builder, arguments[0]).data
            return builder.atomic_rmw("add", shown, ir.Constant(ir.IntType(64), 1), "monotonic")

        return types.int64(counter), code

    @intrinsic
    def numbers_at(typing_context, address, size, like):
        """So many numbers at an address as an array that owns nothing, of the dtype of the array `like`."""
        made = types.Array(like.dtype, 1, "C")

        def code(context, builder, signature, arguments):
            where, count, _ = arguments
            view = make_array(made)(context, builder)
            step = context.get_constant(types.intp, context.get_abi_sizeof(context.get_value_type(like.dtype)))
            data = builder.inttoptr(where, view.data.type)
            return populate_array(
                view, data=data, shape=[count], strides=[step], itemsize=step, meminfo=None
            )._getvalue()

        return made(types.int64, types.int64, like), code


@jit
def told(flag):
    """The flag, as a number that is known when the loop runs: a literal would be compiled for by itself."""
    return bool(flag)


def everywhere(kernel, parts, work, *arguments, scratch=None):
    """Run kernel(counter, *arguments) on every thread, or on one where a second would not pay.

    Args:
        kernel: a compiled loop `while (part := take(counter)) < parts: …`.
        parts: how many parts there are.
        work: of all of them, in multiply-adds of a matrix product (`cuts.py`).
        arguments: of the kernel, behind the counter.
        scratch: (shape, dtype) of memory that a thread needs for itself; then the kernel's last argument.
    """
    counter = np.zeros(1, np.int64)
    count = min(parts, threads.get_num_threads()) if work > cuts.PARALLEL_WORK else 1
    own: list[tuple] = [()] * count
    if scratch is not None:
        shape, dtype = scratch
        own = [(mine,) for mine in empty((count, *shape), dtype)]
    if count == 1:
        kernel(counter, *arguments, *own[0])
    else:
        threads.parallel(lambda mine: kernel(counter, *arguments, *mine), own)
