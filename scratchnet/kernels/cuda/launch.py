"""CUDA kernels: found in the `.cu` files here, compiled when first called, their arguments checked before every launch.

A kernel that is launched with a wrong argument does not raise: it reads strides that are not there, or half of a number.
What a kernel takes stands in its own first lines, so they are read here, from the source, and every argument is held to
them: arrays must be C-contiguous, of the dtype that the pointer has, and aligned where 16 bytes are loaded at once; a
number is given the width that the parameter has. Nothing here waits for the device.

The layers' functions are in the files beside this one, each beside its `.cu`.
"""

import functools
import itertools
import math
import re
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from scratchnet.device import get_array_module, name_of

THREADS = 256  # a block's
BLOCKS = 2048  # at most, of a whole grid: enough for every GPU of today, and loops stride over what is left
REDUCING_BLOCKS = 1024  # about, of a grid that adds up: as many parts are left for the second pass
WORD = 16  # bytes that a thread loads at once, where an array allows it

CPP = {"float32": "float", "float64": "double", "bfloat16": "bfloat16"}
SUM = {"float32": "float32", "float64": "float64", "bfloat16": "float32"}  # sum_t of common.cu
BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
_FIXED = {"int": "int32", "long long": "int64", "unsigned char": "uint8"}
_TABLE = re.compile(r"template <class T> struct (\w+) \{([^{}]*)\};")
_COLUMN = re.compile(r"([^;]+)\[(\d+)\];")
_HEAD = re.compile(r"template <([^>]*)>\s*__global__ void (\w+)\(([^)]*)\)")


def sum_dtype(x):
    """The dtype in which the numbers of x are added up, and parameters kept: that of x, or float32 for bfloat16."""
    return SUM[x.dtype.name]


class Argument(NamedTuple):
    """What a kernel takes: a pointer to numbers of a dtype, or a number. dtype "T" and "sum" follow the array."""

    name: str
    pointer: bool
    dtype: str

    def of(self, dtype):
        """The dtype's name, for kernels over arrays of `dtype`."""
        return {"T": dtype, "sum": SUM[dtype]}.get(self.dtype, self.dtype)


class Kernel(NamedTuple):
    """What the source says of a kernel: its file, its template parameters behind T, its arguments.

    One that takes a table, a struct by value, has the table's columns for arguments, and `rows`, how many it may have.
    """

    source: str
    template: tuple[str, ...]
    arguments: tuple[Argument, ...]
    rows: int = 0


FOLDER = resources.files("scratchnet.kernels") / "cuda"


def text(source):
    """The CUDA text of a file, behind what all of them share."""
    parts = [(FOLDER / f"{name}.cu").read_text(encoding="utf-8") for name in ("common", source)]
    return "\n".join(parts)


@functools.cache
def declared():
    """Every `Kernel` by its name, as the sources declare them."""
    names = sorted(path.name for path in FOLDER.iterdir())
    found = {}
    for source in [name[:-3] for name in names if name.endswith(".cu") and name != "common.cu"]:
        tables = dict(_TABLE.findall(text(source)))
        for template, name, parameters in _HEAD.findall(text(source)):
            kinds = tuple(part.split()[1] for part in template.split(",")[1:])  # "class T, int V" -> ("V",)
            columns, rows = parameters.split(","), 0
            if parameters.endswith("<T> rows"):
                columns, lengths = zip(*_COLUMN.findall(tables[parameters.removesuffix("<T> rows")]), strict=True)
                rows = min(map(int, lengths))
            found[name] = Kernel(source, kinds, tuple(map(_argument, columns)), rows)
    return found


def _argument(declaration):
    kind, name = declaration.replace("const ", "").strip().rsplit(" ", 1)
    pointer = kind.endswith("*")
    kind = kind.rstrip("* ")
    return Argument(name, pointer, {"T": "T", "sum_t<T>": "sum"}.get(kind) or _FIXED[kind])


def choices(template, dtype):
    """The values that a template parameter is compiled for."""
    return {
        "V": (1, WORD // BYTES[dtype]),  # numbers a thread loads at once
        "CLIP": (False, True),  # ReLU6 behind batch norm
        "NESTEROV": (False, True),
        "CENTERED": (False, True),
        "MOMENTUM": (False, True),
        "S": (1, 2),  # stride of a 3×3 window
    }[template]


def expression(name, dtype, *template):
    """A kernel's name in C++: `normalise<float, 4, false>`."""
    values = [CPP[dtype], *(str(value).lower() for value in template)]
    return f"{name}<{', '.join(values)}>"


def instantiations(source, dtype):
    """All that a source is compiled for, as names in C++."""
    return [
        expression(name, dtype, *values)
        for name, kernel in declared().items()
        if kernel.source == source
        for values in itertools.product(*(choices(kind, dtype) for kind in kernel.template))
    ]


OPTIONS = ("-std=c++17",)


@functools.cache
def _module(xp, source, dtype):
    """One module a source and dtype; CuPy compiles it at its first use and loads it once for every device."""
    return xp.RawModule(code=text(source), options=OPTIONS, name_expressions=instantiations(source, dtype))


@functools.cache
def _function(xp, name, dtype, template):
    return _module(xp, declared()[name].source, dtype).get_function(expression(name, dtype, *template))


def launch(name, template, grid, *args, threads=None, dtype=None):
    """Run a kernel.

    Args:
        name: of the kernel.
        template: values of its template parameters behind T.
        grid: blocks (x, y).
        args: arrays, and Python numbers, which get the width that the parameter has.
        threads: of a block, a multiple of 32; THREADS where not given.
        dtype: name of T; that of the first array where not given.

    Raises:
        TypeError: another number of arguments, an array where a number belongs or the reverse, a wrong dtype.
        ValueError: an array that is not C-contiguous or not aligned, a number that does not fit.
    """
    xp = get_array_module(args[0])
    prepared = _prepared(xp, name, dtype or name_of(args[0].dtype), template)
    if len(args) != len(prepared.parameters):
        raise TypeError(f"{name}: takes {len(prepared.parameters)} arguments, got {len(args)}")
    ndarray, values = xp.ndarray, []
    for (parameter, kind, word, make, least, most), arg in zip(prepared.parameters, args, strict=True):
        # What is right passes here, in as few steps as Python allows; `_checked` says of the rest what is wrong.
        if make is None:
            right = (
                isinstance(arg, ndarray)
                and name_of(arg.dtype) == kind
                and arg.flags.c_contiguous
                and (word == 1 or not arg.data.ptr % word)
            )
        else:
            right = type(arg) in _NUMBERS and (least is None or least <= arg < most)
        if not right:
            arg = _checked(name, parameter, kind, arg, word, xp)
        values.append(arg if make is None else make(arg))
    prepared.function()(grid, (threads or THREADS,), tuple(values))


def launch_rows(name, rows, dtype=None):
    """Run a kernel that takes a table: one launch, or as many as its length asks for.

    Args:
        name: of the kernel.
        rows: tuples of what the columns say, arrays and Python numbers; the last is how many numbers the arrays have.
        dtype: name of T; that of the first array where not given.

    Raises:
        TypeError, ValueError: as `launch` does.
    """
    xp, kernel = get_array_module(rows[0][0]), declared()[name]
    dtype = dtype or name_of(rows[0][0].dtype)
    for first in range(0, len(rows), kernel.rows):
        part = rows[first : first + kernel.rows]
        table = np.zeros(1, layout(name, dtype))  # CuPy gives a kernel a NumPy array of one element by value
        for column, args in zip(kernel.arguments, zip(*part, strict=True), strict=True):
            values = [_checked(name, column, column.of(dtype), arg, 1, xp) for arg in args]
            table[column.name][0, : len(part)] = [value.data.ptr for value in values] if column.pointer else values
        grid = blocks(max(row[-1] for row in part), len(part))
        _prepared(xp, name, dtype, ()).function()(grid, (THREADS,), (table,))


@functools.cache
def layout(name, dtype):
    """The table that a kernel takes, as C++ lays it out."""
    kernel = declared()[name]
    columns = [(c.name, "u8" if c.pointer else c.of(dtype), kernel.rows) for c in kernel.arguments]
    return np.dtype(columns, align=True)


_NUMBERS = {int, float, bool}


class _Prepared(NamedTuple):
    """What is the same at every launch: the function, once it is compiled, and what to hold each argument to."""

    function: Any
    parameters: tuple


@functools.cache
def _prepared(xp, name, dtype, template):
    """For each argument (itself, dtype's name, alignment in bytes, type of a number or None, its range or None)."""
    kernel = declared()[name]
    word = template[0] * BYTES[dtype] if kernel.template[:1] == ("V",) else 1
    parameters = []
    for parameter in kernel.arguments:
        kind = parameter.of(dtype)
        make = None if parameter.pointer else np.dtype(kind).type
        limits = (-(1 << 31), 1 << 31) if kind == "int32" and make else (None, None)
        parameters.append((parameter, kind, word if parameter.dtype == "T" else 1, make, *limits))
    return _Prepared(functools.cache(lambda: _function(xp, name, dtype, template)), tuple(parameters))


def _checked(name, parameter, dtype, arg: Any, word, xp):
    where = f"{name}: {parameter.name}"
    if parameter.pointer:
        if not isinstance(arg, xp.ndarray):
            raise TypeError(f"{where} must be an array on the device, got {type(arg).__name__}")
        if name_of(arg.dtype) != dtype:
            raise TypeError(f"{where} must be of dtype {dtype}, got {arg.dtype}")
        if not arg.flags.c_contiguous:
            raise ValueError(f"{where} must be C-contiguous, got strides {arg.strides} for shape {arg.shape}")
        if parameter.dtype == "T" and arg.data.ptr % word:
            raise ValueError(f"{where} must begin at a multiple of {word} bytes")
        return arg
    if not isinstance(arg, (bool, int, float)):
        raise TypeError(f"{where} must be a number, got {type(arg).__name__}")
    if dtype == "int32" and not -(1 << 31) <= arg < 1 << 31:
        raise ValueError(f"{where} must fit into 32 bits, got {arg}")
    return np.dtype(dtype).type(arg)


# Grids ----------------------------------------------------------------------------------------------------------------


def vector(m, *arrays):
    """How many numbers a thread loads at once from rows of m numbers: a word's, where every row begins at one."""
    count = WORD // arrays[0].dtype.itemsize
    return count if m % count == 0 and all(array.data.ptr % WORD == 0 for array in arrays) else 1


def blocks(items, channels=1, most=None):
    """Blocks (x, y) for rows of `items`: from the shape alone, so that the same shapes add up in the same order."""
    wanted = math.ceil(items / THREADS)
    return max(1, min(wanted, math.ceil((most or BLOCKS) / channels))), channels


def reducing(items, channels=1):
    """Blocks for a kernel that adds up, with at least four numbers a thread where that leaves the grid full."""
    return blocks(math.ceil(items / 4), channels, REDUCING_BLOCKS)
