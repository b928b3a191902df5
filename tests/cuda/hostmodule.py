"""`cupy.RawModule` for the host: the same CUDA source, compiled by g++ behind `host.h`, over NumPy arrays.

What a GPU would do silently is an error here: a number of the wrong width, a write beyond an array (every array lies
between guard bands), a barrier that not all threads reach. What is read beyond an array is NaN. A table, which a kernel
takes by value, has addresses: the arrays are where they are, without guards.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy as np

SHIM = Path(__file__).with_name("host.h")
ORDERS = 8  # of blocks and threads: see host.h
GUARD = 4096  # bytes before and behind every array
_one_at_a_time = threading.Lock()  # a library has one set of fibers, and ctypes lets other threads run
_GUARDED = 0xFF  # NaN in every floating-point type


class HostKernelError(RuntimeError):
    """A kernel could not be compiled, or did what it must not do."""


def has_compiler():
    return shutil.which("g++") is not None


class HostModule:
    """Kernels of a source, by their names in C++.

    Args:
        code: CUDA C++.
        options: compiler options, which g++ must have too.
        name_expressions: the kernels, each with its template arguments.
    """

    def __init__(self, code, options=(), name_expressions=()):
        exports = "\n".join(f"EXPORT({_symbol(name)}, {name})" for name in name_expressions)
        source = f'#include "{SHIM}"\n#line 1 "kernels.cu"\n{code}\n{exports}\n'
        self._library = ctypes.CDLL(_compiled(source, tuple(options)))
        self._names = list(name_expressions)

    def get_function(self, name):
        if name not in self._names:
            raise HostKernelError(f"no kernel {name} among {self._names}")
        return HostKernel(self._library, name)


class HostKernel:
    """`kernel(grid, block, args)` as CuPy has it; `order` is in which order blocks and threads run."""

    def __init__(self, library, name):
        self.name = name
        self._launch = getattr(library, f"launch_{_symbol(name)}")
        self._launch.restype = ctypes.c_char_p
        widths = (ctypes.c_int * 64)()
        count = getattr(library, f"widths_{_symbol(name)}")(widths)
        self._widths = list(widths[:count])
        self._waits = False  # whether its threads wait for each other, in any launch so far

    def __call__(self, grid, block, args, order=0):
        if len(args) != len(self._widths):
            raise HostKernelError(f"{self.name}: takes {len(self._widths)} arguments, got {len(args)}")
        size = (ctypes.c_uint * 3)(*(*grid, 1)[:2], *block)
        error = self._run(args, size, order, self._waits)
        if error == "a thread waits for others":
            self._waits = True
            error = self._run(args, size, order, True)
        if error:
            raise HostKernelError(f"{self.name}: {error}")

    def _run(self, args, size, order, threads_wait):
        """Start it; what it says. Arrays change only if it says nothing."""
        arrays, values = [], []
        for arg, width in zip(args, self._widths, strict=True):
            if isinstance(arg, np.ndarray) and not arg.dtype.names:
                guarded = np.full(arg.nbytes + 2 * GUARD + 64, _GUARDED, np.uint8)
                guarded = guarded[-guarded.ctypes.data % 64 :][: arg.nbytes + 2 * GUARD]
                inside = guarded[GUARD : GUARD + arg.nbytes]
                inside[...] = arg.reshape(-1).view(np.uint8)
                arrays.append((arg, guarded, inside))
                value = np.array(inside.ctypes.data, np.uintp)
            else:
                value = np.array(arg)
            if value.itemsize != width:
                return f"argument {len(values)} has {value.itemsize} bytes, the parameter {width}"
            values.append(value)
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        with _one_at_a_time:
            error = self._launch(pointers, size, order, int(threads_wait))
        if error:
            return error.decode()
        for k, (arg, guarded, inside) in enumerate(arrays):
            if (guarded[:GUARD] != _GUARDED).any() or (guarded[GUARD + arg.nbytes :] != _GUARDED).any():
                return f"a write beyond array {k}"
            arg.reshape(-1).view(np.uint8)[...] = inside
        return None


def _symbol(name):
    return re.sub(r"\W+", "_", name)


@functools.cache
def _compiled(source, options):
    """The path of the shared library; compiled once, and kept for the next run."""
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-ffp-contract=off", "-fno-gnu-unique"]
    command += options
    key = hashlib.sha256("\0".join([source, SHIM.read_text(), *command]).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"scratchnet-host-kernels-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    library = folder / f"{key}.so"
    if not library.exists():
        (folder / f"{key}.cpp").write_text(source)
        part = folder / f"{key}.{os.getpid()}.part"
        done = subprocess.run([*command, folder / f"{key}.cpp", "-o", part], capture_output=True, text=True)
        if done.returncode:
            raise HostKernelError(done.stderr)
        part.replace(library)
    return str(library)
