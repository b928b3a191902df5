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
    recorded      what would have been a launch, but was taken down; `graph` counts how often such a list was started

While a stream is captured nothing is computed: every call is kept with the addresses of its arrays, and what CUDA or CuPy
refuse then raises `CaptureError`. A pool hands memory out again that is free, and what belonged to a pool that is gone is
filled with NaN and given to whoever asks next. `binding` is in the place of nvmath.bindings.cublas.

Put it in CuPy's place with `sys.modules["cupy"] = standin`.
"""

import ctypes
import json
import operator
import threading
import weakref
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


class CaptureError(RuntimeError):
    """Something that must not happen while a stream is captured."""


class _Thread(threading.local):
    """What a thread has of its own: the stream in use, the calls of the capture under way, the pool to take memory from."""

    stream = None
    calls: list | None = None
    pool = None


_thread = _Thread()


def _not_captured(what):
    if _thread.calls is not None:
        raise CaptureError(f"{what} while a stream is captured")


class _Pointer:
    """An array as a kernel knows it: an address, and no claim on the memory."""

    def __init__(self, array):
        self.form = array.shape, array.dtype, array.strides
        self.address = array.ctypes.data
        low, high = np.lib.array_utils.byte_bounds(array)
        self.span = low, high - low
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        # Of a pool only the address is known. What lies elsewhere the host's allocator would really take away.
        self.owner = None if isinstance(owner.base, _Block) else owner

    def array(self):
        shape, dtype, strides = self.form
        if not self.span[1]:
            return np.empty(shape, dtype)
        memory = np.frombuffer((ctypes.c_char * self.span[1]).from_address(self.span[0]), np.uint8)
        return np.ndarray(shape, dtype, memory, self.address - self.span[0], strides)


def _pointers(value):
    value = _bare(value)
    if isinstance(value, np.ndarray):
        return _Pointer(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map(_pointers, value))
    return value


def _arrays(value):
    if isinstance(value, _Pointer):
        return value.array()
    if isinstance(value, (list, tuple)):
        return type(value)(map(_arrays, value))
    return value


def _take_down(function, *args, **kwargs):
    """Keep a call for the replay; whether a stream is captured."""
    if _thread.calls is None:
        return False
    counts["recorded"] += 1
    _thread.calls.append((function, _pointers(args), {key: _pointers(value) for key, value in kwargs.items()}))
    return True


def _started(function, *args, **kwargs):
    """Call it, or keep it for the replay: it writes into one of its arguments."""
    if not _take_down(function, *args, **kwargs):
        counts["launch"] += 1
        function(*_bare(args), **_bare_values(kwargs))


def _made(result, function, *args, **kwargs):
    """A new array of the result; while a stream is captured it is in the pool, and only the replay gives it its numbers."""
    made = ndarray(_placed(np.asarray(result)))
    if _thread.calls is not None:
        counts["launch"] -= 1
        _take_down(_compute, made, function, args, _plain(kwargs))
    return made


def _plain(kwargs):
    return tuple(kwargs.items())


def _compute(out, function, args, kwargs):
    out[...] = function(*args, **dict(kwargs))


class _Block:
    """A piece of a pool's memory in use by an array, and by all views of it."""

    def __init__(self, memory, shape, dtype):
        size = int(np.prod(shape)) * dtype.itemsize
        self.memory = memory
        self.__array_interface__ = {
            "data": (memory.ctypes.data, False), "shape": (size,), "typestr": "|u1", "version": 3,
        }  # fmt: skip


_everything: list = []  # all memory that any pool ever had: addresses stay good for the process
_left: list = []  # memory of pools that are gone, for whoever asks next


class MemoryPool:
    """cupy.cuda.MemoryPool."""

    def __init__(self):
        self._free: list = []
        weakref.finalize(self, _leave, self._free)

    def malloc(self, size):
        raise NotImplementedError("the stand-in takes memory by using_allocator(pool.malloc)")

    def take(self, shape, dtype):
        size = max(64, -(-int(np.prod(shape)) * dtype.itemsize // 512) * 512)
        memory = next((memory for memory in self._free if memory.nbytes == size), None)
        if memory is None:
            memory = np.full(size, 0xFF, np.uint8)
            _everything.append(memory)
        else:
            self._free[:] = [other for other in self._free if other is not memory]
        block = _Block(memory, shape, dtype)
        weakref.finalize(block, _give_back, weakref.ref(self), memory)
        return _in_block(block, shape, dtype)


def _in_block(block, shape, dtype):
    return np.asarray(block).view(dtype).reshape(shape) if np.prod(shape) else np.empty(shape, dtype)


def _give_back(pool, memory):
    if (pool := pool()) is not None:
        pool._free.append(memory)
    else:
        _leave([memory])


def _leave(memories):
    for memory in memories:
        memory[...] = 0xFF
    _left.extend(memories)


def _placed(array):
    """The array in memory of the pool in use; a view as it is."""
    if _thread.pool is None:
        _not_captured("memory from outside of a pool")
        return array
    placed = _thread.pool.take(array.shape, array.dtype)
    placed[...] = array
    return placed


class using_allocator:  # noqa: N801 (CuPy's name)
    """cupy.cuda.using_allocator."""

    def __init__(self, allocator=None):
        self._pool = allocator.__self__ if allocator else None

    def __enter__(self):
        self._before, _thread.pool = _thread.pool, self._pool

    def __exit__(self, *_):
        _thread.pool = self._before


class Graph:
    """cupy.cuda.Graph: calls, with the addresses of their arrays."""

    def __init__(self, calls):
        self._calls = calls

    def launch(self, stream=None):
        _not_captured("a graph started")
        counts["graph"] += 1
        for function, args, kwargs in self._calls:
            function(*_arrays(args), **{key: _arrays(value) for key, value in kwargs.items()})


class Stream:
    """cupy.cuda.Stream."""

    def __init__(self, null=False, non_blocking=False, ptds=False):
        self.ptr, self._blocks = 0 if null else id(self), not (null or non_blocking)
        self._calls = None

    def __enter__(self):
        self._before, _thread.stream = _thread.stream, self
        return self

    def __exit__(self, *_):
        _thread.stream = self._before

    def begin_capture(self, mode=None):
        if self.ptr == 0 or self._blocks:
            raise CaptureError("the null stream, and one that waits for it, cannot be captured")
        if get_current_stream() is not self:
            raise CaptureError("the stream to capture is not the one in use")
        _not_captured("another capture begun")
        self._errors = np.seterr(all="ignore")  # shapes are found out by computing with whatever lies in the pool
        _thread.calls = []

    def end_capture(self):
        if _thread.calls is None:
            raise CaptureError("nothing is captured")
        calls, _thread.calls = _thread.calls, None
        np.seterr(**self._errors)
        return Graph(calls)

    def is_capturing(self):
        return _thread.calls is not None and get_current_stream() is self

    def synchronize(self):
        _not_captured("a wait")
        counts["synchronize"] += 1


_null_stream = Stream(null=True)


def get_current_stream(device_id=-1):
    return _thread.stream or _null_stream


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
        _not_captured("an array, or a number, is read")
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
                _not_captured("how many are True is read")
                counts["to host"] += 1  # how many are True decides the shape
        return _bare(key)

    def __getitem__(self, key):
        result = self._array[self._index(key)]
        if not isinstance(result, np.ndarray) or not np.may_share_memory(result, self._array):
            bare = _bare(key)
            if not isinstance(result, np.ndarray):  # a view of one number
                return ndarray(self._array[(*(bare if isinstance(bare, tuple) else (bare,)), ...)])
            counts["launch"] += 1
            return _made(result, operator.getitem, self, bare)
        return ndarray(result)

    def __setitem__(self, key, value):
        if not isinstance(value, (ndarray, *_SCALARS)):
            raise TypeError(f"Unsupported type {type(value)}")
        _started(operator.setitem, self, self._index(key), value)

    @property
    def T(self):  # noqa: N802 (CuPy's name)
        return ndarray(self._array.T)

    @property
    def data(self):
        return SimpleNamespace(ptr=self._array.ctypes.data)

    @property
    def base(self):
        owner = self._array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        return None if owner is self._array else ndarray(owner)

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
            if kwargs.get("out") is not None:
                _not_captured(f"{name} with out")
            before = counts["launch"]
            result = _launched(value(*_bare(args), **_bare_values(kwargs)), self, copies=copies)
            if kwargs.get("out") is not None:
                return kwargs["out"]
            if counts["launch"] == before or not isinstance(result, (np.ndarray, np.generic)):
                return _dressed(result)
            return _made(result, _method, self, name, args, _plain(kwargs))

        return method


def _method(array, name, args, kwargs):
    return getattr(array, name)(*args, **dict(kwargs))


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


def _add_up(array, function, other):
    np.copyto(array, function(array, other), casting="same_kind")


def _c_array(result):
    return np.ascontiguousarray(result).reshape(np.shape(result))


def _operators():
    def binary(function, in_place=False):
        def forward(self, other):
            _refuse(other)
            if not isinstance(other, (ndarray, *_SCALARS)):
                return NotImplemented
            if function is _matmul:
                _not_captured("a product by CuPy's own cuBLAS")
                counts["batched"] += max(self.ndim, other.ndim) > 2
            if function is not _matmul:
                _refuse_bfloat16(function.__name__, self, other)
            if in_place:
                _started(_add_up, self, function, other)
                return self
            counts["launch"] += 1
            return _made(_c_array(function(self._array, _bare(other))), function, self, other)

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
        setattr(ndarray, f"__{name}__", lambda self, f=function: _made(_c_array(_launched(f(self._array))), f, self))


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
            _not_captured("a copy from the host")
            counts["to device"] += 1
            return ndarray(_placed(np.array(args[0], **_bare_values(kwargs))))
        _refuse_bfloat16(name, *args)
        if name in ("matmul", "dot", "tensordot", "einsum"):
            _not_captured("a product by CuPy's own cuBLAS")
        if kwargs.get("out") is not None:
            _started(function, *args, **kwargs)
            return kwargs["out"]
        result, before = function(*_bare(args), **_bare_values(kwargs)), counts["launch"]
        if name in _FREE:
            return ndarray(_placed(result))
        _launched(result, *args, copies=name == "ascontiguousarray")
        if name == "matmul":
            counts["batched"] += result.ndim > 2
        if counts["launch"] == before or not isinstance(result, (np.ndarray, np.generic)):
            return _dressed(result)
        return _made(_c_array(result) if ufunc else result, function, *args, **kwargs)

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
            tables = [isinstance(arg, np.ndarray) and arg.dtype.names and arg.size == 1 for arg in args]
            for arg, table in zip(args, tables, strict=True):
                if not table:
                    _refuse(arg)
                if isinstance(arg, ndarray) and not arg.flags.c_contiguous:
                    raise ValueError(f"{name}: an array is not C-contiguous, and a raw kernel does not see strides")
            widths = {bool: np.bool_, int: np.int64, float: np.float64}  # what CuPy makes of Python's numbers
            values = [widths[type(arg)](arg) if type(arg) in widths else _bare(arg) for arg in args]
            values = [arg[0].copy() if table else arg for arg, table in zip(values, tables, strict=True)]  # by value
            _started(kernel, grid, block, values)

        return call


cuda = SimpleNamespace(
    is_available=lambda: True, Device=lambda: SimpleNamespace(id=0), get_current_stream=get_current_stream,
    Stream=Stream, MemoryPool=MemoryPool, using_allocator=using_allocator,
)  # fmt: skip
_compute_type = [1]
_core = SimpleNamespace(
    _routines_linalg=SimpleNamespace(COMPUTE_TYPE_DEFAULT=1, COMPUTE_TYPE_TF32=7),
    get_compute_type=lambda dtype: _compute_type[0],
    set_compute_type=lambda dtype, kind: _compute_type.__setitem__(0, kind),
)


class Binding:
    """nvmath.bindings.cublas, as much of it as there is use for; `products` has the compute type of each product."""

    def __init__(self):
        self._streams: dict = {}
        self._workspaces: dict = {}
        self.products: list = []

    def create(self):
        _not_captured("a handle of cuBLAS made")
        self._streams[len(self._streams) + 1] = None
        return len(self._streams)

    def set_workspace(self, handle, pointer, size):
        self._workspaces[handle] = pointer, size

    def set_stream(self, handle, stream):
        self._streams[handle] = stream
        self._workspaces[handle] = 0, 0  # back to cuBLAS's own, as the manual says

    def gemm_ex(
        self, handle, transa, transb, m, n, k, alpha, a, atype, lda, b, btype, ldb, beta, c, ctype, ldc, compute, algo
    ):  # fmt: skip
        if self._streams[handle] != get_current_stream().ptr or not self._workspaces[handle][1]:
            raise CaptureError("a product in another stream than the one in use, or without a workspace")
        allowed = {68: [(0, 0), (14, 14), (14, 0)], 70: [(1, 1)], 77: [(0, 0)]}
        if atype != btype or (atype, ctype) not in allowed[compute] or algo != -1:
            raise TypeError(f"CUBLAS_STATUS_NOT_SUPPORTED: {atype}, {btype} -> {ctype} by {compute}")
        if lda < (k if transa else m) or ldb < (n if transb else k) or ldc < m:
            raise ValueError("CUBLAS_STATUS_INVALID_VALUE: a leading dimension")
        real = ctypes.c_double if compute == 70 else ctypes.c_float
        scales = [real.from_address(place).value for place in (alpha, beta)]  # read here, as cuBLAS reads them
        self.products.append(compute)
        factors = (a, atype, lda, (m, k), transa), (b, btype, ldb, (k, n), transb)
        _started(_multiply, factors, (c, ctype, ldc, (m, n), 0), scales, compute)


def _columns(address, kind, step, shape, transposed):
    """The matrix that cuBLAS sees: column by column."""
    dtype = np.dtype({0: "float32", 1: "float64", 14: "bfloat16"}[kind])
    rows, columns = shape[::-1] if transposed else shape
    memory = (ctypes.c_char * (dtype.itemsize * ((columns - 1) * step + rows))).from_address(address)
    matrix = np.ndarray((rows, columns), dtype, memory, 0, (dtype.itemsize, dtype.itemsize * step))
    return matrix.T if transposed else matrix


def _multiply(factors, result, scales, compute):
    a, b = (_columns(*factor) for factor in factors)
    out = _columns(*result)
    a, b = ((x if compute == 70 else x.astype(np.float32)) for x in (a, b))
    if compute == 77:  # 10 bits of each factor
        a, b = (_to_ten_bits(x) for x in (a, b))
    y = scales[0] * (b.T @ a.T).T  # row-major, as the layers' files multiply
    out[...] = y + scales[1] * out if scales[1] else y


def _to_ten_bits(x):
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _function(name)
