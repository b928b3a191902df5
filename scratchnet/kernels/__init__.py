"""The table of kernels: for each function its faster versions for CPU and GPU, in the order in which they are tried.

A layer's file holds the mathematics, for any dtype and for NumPy and CuPy alike: a forward and its backward, which are a
`Pair`. A version in the table has the same names, the same parameters and the same values to rounding. What a forward
saves is its own affair: so `choose` gives both functions of one version, together, and no other function ever reads it.
"""

from collections.abc import Callable
from typing import NamedTuple

from scratchnet.device import Kind, is_array, kind_of
from scratchnet.kernels import cpu, cuda


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

    pair: Pair
    device: str
    dtypes: tuple[str, ...]
    takes: Callable  # of the facts that `choose` is given


REAL = ("float32", "float64")
STORED = (*REAL, "bfloat16")


def _numpy(module, takes=lambda **facts: True):
    return lambda row: Version(_pair(module, row, "numpy"), "cpu", REAL, takes)


def _cuda(module, dtypes=STORED, takes=lambda **facts: True):
    return lambda row: Version(_pair(module, row, "cuda"), "cuda", dtypes, takes)


def _pair(module, row, version):
    """The functions of a module for a row: a forward and a backward, or one function of that name."""
    if hasattr(module, row):
        return Pair(getattr(module, row), None, version)
    return Pair(getattr(module, f"{row}_forward"), getattr(module, f"{row}_backward"), version)


def _one_filter(filters):
    return filters == 1


def _one_group(groups):
    return groups == 1


_ROWS: dict[str, tuple[Callable, ...]] = {
    # layers/                CPU                               GPU
    "batch_norm":           (_numpy(cpu.norm),                 _cuda(cuda.norm)),
    "frozen_batch_norm":    (                                  _cuda(cuda.norm),),
    "track_statistics":     (                                  _cuda(cuda.norm, REAL),),
    "relu6":                (_numpy(cpu.activation),           _cuda(cuda.activation)),
    "add":                  (_numpy(cpu.activation),           _cuda(cuda.activation)),
    "pointwise":            (_numpy(cpu.pointwise),            _cuda(cuda.pointwise)),
    "depthwise":            (_numpy(cpu.depthwise, _one_filter), _cuda(cuda.depthwise, takes=_one_filter)),
    "grouped":              (_numpy(cpu.dense, _one_group),    _cuda(cuda.dense)),
    "global_avg_pool2d":    (_numpy(cpu.pool),                 _cuda(cuda.pool)),
    "cross_entropy":        (                                  _cuda(cuda.loss),),
    # fused/
    "conv_norm_relu6":      (_numpy(cpu.pointwise),            _cuda(cuda.pointwise)),
    "depthwise_norm_relu6": (_numpy(cpu.depthwise),            _cuda(cuda.depthwise)),
    "clipped_product":      (_numpy(cpu.pointwise),            _cuda(cuda.pointwise)),
    "depthwise_relu6":      (_numpy(cpu.depthwise),            _cuda(cuda.depthwise)),
    "shift_and_clip":       (                                  _cuda(cuda.activation),),
    # training/
    "sgd_update":           (_numpy(cpu.optimizer),            _cuda(cuda.optimizer)),
    "adam_update":          (_numpy(cpu.optimizer),            _cuda(cuda.optimizer)),
    "take_batch":           (                                  _cuda(cuda.augment, ("uint8",)),),
    "stored_in_bfloat16":   (                                  _cuda(cuda.rows, ("float32",)),),
}  # fmt: skip
TABLE = {row: tuple(version(row) for version in versions) for row, versions in _ROWS.items()}

_enabled = True


class use_kernels:  # noqa: N801 (it is called like a function)
    """Whether kernels may be chosen; False leaves every layer with the plain functions in its own file.

    Holds from now on, or `with sn.use_kernels(False): …` for a while.
    """

    def __init__(self, enabled):
        global _enabled
        self._before, _enabled = _enabled, bool(enabled)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        global _enabled
        _enabled = self._before


def enabled():
    """Whether kernels may be chosen."""
    return _enabled


def choose(pair: Pair, kind: Kind, **facts) -> Pair:
    """The first version of a plain pair that takes arrays of this kind, or the pair itself.

    Args:
        pair: of a layer's file.
        kind: of the arrays that will come.
        facts: what else a version may ask for, as the table says: `filters` a channel, `groups`.
    """
    if _enabled:
        for version in TABLE.get(pair.name, ()):
            if version.device == kind.device and kind.dtype in version.dtypes and version.takes(**facts):
                return version.pair
    return pair


def run(function, *args):
    """Call a function that has no backward, in the version for its first array."""
    return choose(Pair(function), kind_of(next(filter(is_array, args)))).forward(*args)
