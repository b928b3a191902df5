"""A CuPy that only refuses: NumPy arrays behind CuPy's manners, to show on any machine what would go wrong on a GPU.

It has the names and keywords that CuPy has (`names.json`, made from a real one by `make_names.py`), mixes with no NumPy
array, converts nothing by itself, returns 0-d arrays where NumPy returns scalars, and C order where CuPy does. Its raw
kernels are the real sources, run on the host. Of bfloat16, which CuPy calls experimental, it has what our code may use:
matrix products and copies. `counts` says what a GPU would have had to do:

    launch        kernels started, CuPy's own and ours
    to device     arrays copied to the device
    to host       arrays, or numbers, copied back; each waits for the device
    copy          arrays that were copied on the device only because their memory order did not fit
    batched       matrix products of more than two axes, for which CuPy copies and forgets about TF32

Put it in CuPy's place with `sys.modules["cupy"] = standin`.
"""

import json
import operator
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from hostmodule import HostModule

NAMES = json.loads(Path(__file__).with_name("names.json").read_text())
counts: Counter = Counter()
_SCALARS = (bool, int, float, complex, np.generic)
_FREE = {"empty", "empty_like"}  # allocate, and start nothing
_FROM_HOST = {"array", "asarray", "asanyarray"}
# What bfloat16 has, beside products
_COPIES = {"ascontiguousarray", "astype", "copy", "empty_like", "reshape", "split", "transpose", "zeros_like"}


def _refuse(value):
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (list, tuple)):
        for item in value:
            _refuse(item)


def _bare(value):
    """NumPy's side of a value."""
    if isinstance(value, ndarray):
        return value._array
    if isinstance(value, (list, tuple)):
        return type(value)(_bare(item) for item in value)
    return value


def _dressed(value):
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(np.asarray(value))
    return type(value)(map(_dressed, value)) if type(value) in (tuple, list) else value


def _launched(result, *sources, copies=False):
    """Count a launch unless the result is a view of a source; hand the result on."""
    result = _bare(result)
    if isinstance(result, np.ndarray | np.generic):
        if not any(isinstance(s, np.ndarray) and np.may_share_memory(result, s) for s in map(_bare, sources)):
            counts["launch"] += 1
            counts["copy"] += copies
    return result


def _refuse_bfloat16(name, *values):
    if name not in _COPIES and any(isinstance(v, ndarray) and v.dtype.name == "bfloat16" for v in values):
        raise NotImplementedError(f"{name} of bfloat16: use a kernel")


def _matmul(a, b):
    """CuPy's product: of bfloat16, added up in float32 and rounded once."""
    if "bfloat16" not in (a.dtype.name, b.dtype.name):
        return a @ b
    if a.dtype != b.dtype or max(a.ndim, b.ndim) > 2:
        raise NotImplementedError(f"a product of {a.dtype} and {b.dtype}, {a.ndim} and {b.ndim} axes")
    return (a.astype(np.float32) @ b.astype(np.float32)).astype(a.dtype)


def _c_order(result):
    return _dressed(np.ascontiguousarray(result) if np.ndim(result) else result)


class ndarray:  # noqa: N801 (CuPy's name)
    """cupy.ndarray."""

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method == "__call__" and any(isinstance(value, np.generic) for value in inputs):  # np.float32(2) * x
            return _function(ufunc.__name__)(*inputs, **kwargs)
        raise TypeError(f"numpy.{ufunc.__name__} of a CuPy array: call it through the array module")

    def __array_function__(self, function, types, args, kwargs):
        raise TypeError(f"numpy.{function.__name__} of a CuPy array: call it through the array module")

    # Ways to the host: each waits

    def _to_host(self):
        counts["to host"] += 1
        return self._array

    def get(self, stream=None, order="C", out=None, blocking=True):
        return np.array(self._to_host(), order=order)

    def item(self):
        return self._to_host().item()

    def tolist(self):
        return self._to_host().tolist()

    def __float__(self):
        return float(self._to_host())

    def __int__(self):
        return int(self._to_host())

    __index__ = __int__

    def __bool__(self):
        return bool(self._to_host())

    def __repr__(self):
        return repr(self._to_host())

    def __format__(self, spec):
        return format(self._to_host().item(), spec)

    # Parts and views

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        return (self[index] for index in range(len(self._array)))

    def _index(self, key):
        for part in key if isinstance(key, tuple) else (key,):
            if isinstance(part, np.ndarray):
                raise TypeError("an index on the host: CuPy would copy it")
            if isinstance(part, ndarray) and part.dtype == bool:
                counts["to host"] += 1  # how many are True decides the shape
        return _bare(key)

    def __getitem__(self, key):
        return _dressed(_launched(self._array[self._index(key)], self))

    def __setitem__(self, key, value):
        if not isinstance(value, (ndarray, *_SCALARS)):
            raise TypeError(f"Unsupported type {type(value)}")
        counts["launch"] += 1
        self._array[self._index(key)] = _bare(value)

    @property
    def T(self):  # noqa: N802 (CuPy's name)
        return ndarray(self._array.T)

    @property
    def data(self):
        return SimpleNamespace(ptr=self._array.ctypes.data)

    @property
    def base(self):
        return self._array.base

    def __getattr__(self, name):
        if name.startswith("_") or name not in NAMES["ndarray"]:
            raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")
        value = getattr(self._array, name)
        if not callable(value):
            return _dressed(value)
        allowed = NAMES["ndarray"][name]["function"]
        copies = name in ("reshape", "ravel")

        def method(*args, **kwargs):
            _check(f"ndarray.{name}", allowed, args, kwargs)
            _refuse_bfloat16(name, self)
            result = _launched(value(*_bare(args), **_bare_values(kwargs)), self, copies=copies)
            return _dressed(result) if kwargs.get("out") is None else kwargs["out"]

        return method


def _bare_values(kwargs):
    return {key: _bare(value) for key, value in kwargs.items()}


def _check(name, allowed, args, kwargs, host=False):
    """Refuse keywords that CuPy does not have, and NumPy arrays."""
    if not host:
        for value in [*args, *kwargs.values()]:
            _refuse(value)
    if allowed is not None and "*" not in allowed:
        for key in kwargs:
            if key not in allowed:
                raise TypeError(f"cupy.{name}() got an unexpected keyword argument {key!r}")
        if len(args) > len(allowed):
            raise TypeError(f"cupy.{name}() takes {len(allowed)} arguments, got {len(args)}")


def _operators():
    def binary(function, in_place=False):
        def forward(self, other):
            _refuse(other)
            if not isinstance(other, (ndarray, *_SCALARS)):
                return NotImplemented
            counts["launch"] += 1
            if function is _matmul:
                counts["batched"] += max(self.ndim, other.ndim) > 2
            if function is not _matmul:
                _refuse_bfloat16(function.__name__, self, other)
            result = function(self._array, _bare(other))
            if in_place:
                np.copyto(self._array, result, casting="same_kind")
                return self
            return _c_order(result)

        return forward

    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor"):
        function = _matmul if name == "matmul" else getattr(operator, name)
        short = name.strip("_")
        setattr(ndarray, f"__{short}__", binary(function))
        setattr(ndarray, f"__r{short}__", binary(lambda a, b, f=function: f(b, a)))
        if name != "matmul":  # CuPy has no @=
            setattr(ndarray, f"__i{short}__", binary(function, in_place=True))
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(ndarray, f"__{name}__", binary(getattr(operator, name)))
    for name in ("neg", "pos", "abs", "invert"):
        function = getattr(operator, name)
        setattr(ndarray, f"__{name}__", lambda self, f=function: _c_order(_launched(f(self._array))))


_operators()


def _function(name):
    """CuPy's function of this name; AttributeError where it has none."""
    kind = NAMES["cupy"].get(name)
    if kind is None:
        raise AttributeError(f"module 'cupy' has no attribute {name!r}")
    if kind in ("constant", "type") and hasattr(np, name):
        return getattr(np, name)
    if not hasattr(np, name) or kind == "module":
        raise NotImplementedError(f"the stand-in has no {name}: CuPy has")
    ufunc, function = kind == "ufunc", getattr(np, name)

    def call(*args, **kwargs):
        host = name in _FROM_HOST
        _check(name, ["*"] if ufunc else kind["function"], args, kwargs, host)
        if ufunc and not {*kwargs} <= {"out", "dtype", "casting"}:
            raise TypeError(f"cupy.{name}: wrong keyword among {[*kwargs]}")
        if ufunc and not all(isinstance(arg, (ndarray, *_SCALARS)) for arg in args):
            raise TypeError(f"Unsupported type among {[type(arg) for arg in args]}")
        if host and not isinstance(args[0], ndarray):
            counts["to device"] += 1
            return ndarray(np.array(args[0], **_bare_values(kwargs)))
        _refuse_bfloat16(name, *args)
        result = function(*_bare(args), **_bare_values(kwargs))
        if name not in _FREE:
            _launched(result, *args, copies=name == "ascontiguousarray")
        if name == "matmul":
            counts["batched"] += result.ndim > 2
        if kwargs.get("out") is not None:
            return kwargs["out"]
        return _c_order(result) if ufunc else _dressed(result)

    return call


def asnumpy(array, stream=None, order="C", out=None, blocking=True):
    return array.get(order=order)


class RawModule:
    """cupy.RawModule over host code: ignores strides on a GPU, so they are refused here."""

    def __init__(self, *, code, options=(), backend="nvrtc", name_expressions=()):
        self._module = HostModule(code, options, tuple(name_expressions))

    def get_function(self, name):
        kernel = self._module.get_function(name)

        def call(grid, block, args, *, shared_mem=0):
            for arg in args:
                _refuse(arg)
                if isinstance(arg, ndarray) and not arg.flags.c_contiguous:
                    raise ValueError(f"{name}: an array is not C-contiguous, and a raw kernel does not see strides")
            widths = {bool: np.bool_, int: np.int64, float: np.float64}  # what CuPy makes of Python's numbers
            values = [widths[type(arg)](arg) if type(arg) in widths else _bare(arg) for arg in args]
            counts["launch"] += 1
            kernel(grid, block, values)

        return call


cuda = SimpleNamespace(is_available=lambda: True)
_compute_type = [1]
_core = SimpleNamespace(
    _routines_linalg=SimpleNamespace(COMPUTE_TYPE_DEFAULT=1, COMPUTE_TYPE_TF32=7),
    get_compute_type=lambda dtype: _compute_type[0],
    set_compute_type=lambda dtype, kind: _compute_type.__setitem__(0, kind),
)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _function(name)
