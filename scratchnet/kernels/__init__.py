"""The table of kernels: for each function its faster versions for CPU and GPU, in the order in which they are tried.

A layer's file holds the mathematics, for any dtype and for NumPy and CuPy alike: a forward and its backward, which are a
`Pair`. A version in the table has the same names, the same parameters and the same values to rounding. What a forward
saves is its own affair: so `choose` gives both functions of one version, together, and no other function ever reads it.
"""

import functools
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from scratchnet.device import Kind, is_array, kind_of
from scratchnet.kernels import compiled, cpu, cuda


class Pair(NamedTuple):
    """A forward and the backward that belongs to it; `version` says whose: "plain" is the layer's own file.

    A function that needs no backward, such as an optimizer's update, is a pair without one.
    """

    forward: Callable
    backward: Callable | None = None
    version: str = "plain"

    @property
    def name(self):
        """What both functions are called, without `_forward` and `_backward`."""
        return self.forward.__name__.removesuffix("_forward")


class Version(NamedTuple):
    """A row's entry: the pair, and what it takes."""

    version: str
    device: str
    dtypes: tuple[str, ...]
    takes: Callable  # of the facts that `choose` is given
    load: Callable  # the pair, which may have to be imported first

    @property
    def pair(self) -> Pair:  # noqa: D102
        return self.load()


REAL = ("float32", "float64")
STORED = (*REAL, "bfloat16")


def _version(row, module, version, device, dtypes, takes):
    @functools.cache
    def load():
        """The functions of the module for this row: a forward and a backward, or one function of that name."""
        found = vars(import_module(module) if isinstance(module, str) else module)
        if row in found:
            return Pair(found[row], None, version)
        return Pair(found[f"{row}_forward"], found[f"{row}_backward"], version)

    return Version(version, device, dtypes, takes, load)


def _any(**facts):
    return True


def _numpy(module, takes=_any):
    return lambda row: _version(row, module, "numpy", "cpu", REAL, takes)


def _loops(name, takes=_any, dtypes=REAL):
    return lambda row: _version(row, f"{compiled.__name__}.{name}", "compiled", "cpu", dtypes, takes)


def _products(name, takes=_any):
    """Loops that multiply matrices: they call the BLAS that NumPy has, where it is one that they know."""

    def known(row):
        made = _loops(name, takes)(row)
        return made._replace(takes=lambda **facts: takes(**facts) and compiled.multiplies())

    return known


def _cuda(module, dtypes=STORED, takes=_any):
    return lambda row: _version(row, module, "cuda", "cuda", dtypes, takes)


def _one_filter(filters=1, **_):
    return filters == 1


def _one_group(groups, **_):
    return groups == 1


def _terms_up_to(most):
    return lambda groups, terms=most + 1, **_: groups == 1 and terms <= most


def _shifts(groups, terms=4096, window=None):
    return groups == 1 and terms < 4096 and window is not None and window[1] == (1, 1)


def _3x3(window=None, filters=1):
    return filters == 1 and window in [((3, 3), (stride, stride), (1, 1), (1, 1)) for stride in (1, 2)]


_ROWS: dict[str, tuple[Callable, ...]] = {
    # layers/                compiled                   NumPy                               GPU
    "batch_norm":           (_loops("norm"),            _numpy(cpu.norm),                   _cuda(cuda.norm)),
    "frozen_batch_norm":    (_loops("norm"),                                                _cuda(cuda.norm)),
    "track_all":            (                                                               _cuda(cuda.many, REAL),),
    "relu":                 (_loops("activation"),      _numpy(cpu.activation)),
    "relu6":                (_loops("activation"),      _numpy(cpu.activation),             _cuda(cuda.activation)),
    "add":                  (                           _numpy(cpu.activation),             _cuda(cuda.activation)),
    "pointwise":            (_products("pointwise"),    _numpy(cpu.pointwise),              _cuda(cuda.pointwise)),
    "depthwise":            (_loops("depthwise", _3x3), _numpy(cpu.depthwise, _one_filter),
                             _cuda(cuda.depthwise, takes=_one_filter)),
    "grouped":              (_products("dense", _terms_up_to(64)), _products("shifts", _shifts),
                             _products("dense", _terms_up_to(320)), _numpy(cpu.dense, _one_group), _cuda(cuda.dense)),
    "global_avg_pool2d":    (_loops("activation"),      _numpy(cpu.pool),                   _cuda(cuda.pool)),
    "linear":               (                                                      _cuda(cuda.dense, dtypes=REAL),),
    "cross_entropy":        (                                                               _cuda(cuda.loss),),
    # fused/
    "conv_norm_relu6":      (_products("pointwise"),    _numpy(cpu.pointwise),              _cuda(cuda.pointwise)),
    "front":                (_products("front", _3x3),                              _cuda(cuda.front, takes=_3x3)),
    "block":                (_products("block", _3x3),),
    "project":              (_products("pointwise"),                                _cuda(cuda.pointwise)),
    "depthwise_norm_relu6": (_loops("depthwise", _3x3), _numpy(cpu.depthwise),              _cuda(cuda.depthwise)),
    "dense_norm_relu6":     (_products("dense", _terms_up_to(64)),                   _cuda(cuda.dense, takes=_one_group)),
    "clipped_product":      (                           _numpy(cpu.pointwise),              _cuda(cuda.pointwise)),
    "depthwise_relu6":      (_loops("depthwise", _3x3), _numpy(cpu.depthwise),              _cuda(cuda.depthwise)),
    "shift_and_clip":       (                                                               _cuda(cuda.activation),),
    # parameter.py
    "add_to_all":           (                                                           _cuda(cuda.many, dtypes=REAL),),
    # training/
    "sgd_update":           (                           _numpy(cpu.optimizer),              _cuda(cuda.optimizer)),
    "adam_update":          (                           _numpy(cpu.optimizer),              _cuda(cuda.optimizer)),
    "rmsprop_update":       (                           _numpy(cpu.optimizer),              _cuda(cuda.optimizer)),
    "sgd_updates":          (_loops("optimizer"),),
    "rmsprop_updates":      (_loops("optimizer"),),
    "adam_updates":         (_loops("optimizer"),),
    "take_batch":           (_loops("augment", dtypes=("uint8", "float32")),
                             _cuda(cuda.augment, dtypes=("uint8",))),
    "stored_in_bfloat16":   (                                              _cuda(cuda.rows, dtypes=("float32",)),),
}  # fmt: skip
TABLE = {
    row: tuple(
        made for made in (version(row) for version in versions) if made.version != "compiled" or compiled.PRESENT
    )
    for row, versions in _ROWS.items()
}

BEST = "compiled" if compiled.PRESENT else "numpy"
_enabled: str | bool = BEST


class use_kernels:  # noqa: N801 (it is called like a function)
    """Which kernels may be chosen.

    Holds from now on, or `with sn.use_kernels(False): …` for a while.

    Args:
        which: True, the best there are; `"compiled"`, the same, and an error where nothing can be compiled; `"numpy"`, on
            the CPU none that are compiled; False, the plain functions in each layer's file.

    Raises:
        ValueError: anything else, or compiled kernels without Numba.
    """

    def __init__(self, which):
        global _enabled
        if which not in (True, False, "numpy", "compiled"):
            raise ValueError(f"use_kernels takes True, False, 'numpy' or 'compiled', got {which!r}")
        if which == "compiled" and (why := compiled.why_not()):
            raise ValueError(f"compiled kernels need Numba: {why}, install the extra fast or use 'numpy'")
        self._before, _enabled = _enabled, BEST if which is True else which

    def __enter__(self):
        return self

    def __exit__(self, *_):
        global _enabled
        _enabled = self._before


def enabled():
    """Which kernels may be chosen: False, "numpy" or "compiled"."""
    return _enabled


def choose(pair: Pair, kind: Kind, **facts) -> Pair:
    """The first version of a plain pair that takes arrays of this kind, or the pair itself.

    Args:
        pair: of a layer's file.
        kind: of the arrays that will come.
        facts: what else a version may ask for, as the table says: `filters` a channel, `groups`, `terms` in the sum for
            a number of the output, and the `window`, which is (kernel, stride, padding, dilation), each a pair. Without a
            window no version for some windows is chosen.
    """
    if _enabled:
        loops = _enabled == "compiled" and not compiled.why_not()
        return _first(pair, kind, loops, tuple(facts.items()))
    return pair


@functools.cache
def _first(pair, kind, loops, facts):
    """The first version that takes arrays of a kind: asked for hundreds of times a step, and always the same."""
    for version in TABLE.get(pair.name, ()):
        here = version.device == kind.device and kind.dtype in version.dtypes
        if here and (loops or version.version != "compiled") and version.takes(**dict(facts)):
            return version.pair
    return pair


def run(function, *args):
    """Call a function that has no backward, in the version for its first array."""
    return choose(Pair(function), kind_of(next(filter(is_array, args)))).forward(*args)
