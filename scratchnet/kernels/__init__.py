"""Faster versions of the layers' functions: how one is found, forced and read.

A layer's file holds the mathematics, for any dtype and for NumPy and CuPy alike. A kernel is a faster version of one of
those functions: the same name, the same parameters, the same values to rounding, for the arrays that it says it takes.
`run(function, *args)` calls the fastest version that takes these arguments, the function itself if there is none.
"""

from collections.abc import Callable

from scratchnet import array

_kernels: dict[tuple[str, str], list[tuple[Callable, Callable]]] = {}
_enabled = True


def register(device, takes):
    """Decorate a kernel: a faster version of the function of the same name, on `device`, where `takes(*args)` is true."""

    def decorate(kernel):
        _kernels.setdefault((kernel.__name__, device), []).append((takes, kernel))
        return kernel

    return decorate


def pick(function, *args):
    """The fastest version of `function` for these arguments, whose first array says where to compute."""
    if _enabled:
        for takes, kernel in _kernels.get((function.__name__, array.device_of(_first_array(args))), ()):
            if takes(*args):
                return kernel
    return function


def _first_array(args):
    """The first array among arguments, or in a cache that is one of them."""
    for arg in args:
        if array.is_array(arg):
            return arg
        if isinstance(arg, tuple) and arg and array.is_array(arg[0]):
            return arg[0]
    return None


def run(function, *args):
    """Call the fastest version of `function` for these arguments."""
    return pick(function, *args)(*args)


def use_kernels(enabled):
    """Whether kernels may be picked; False leaves every layer with the plain function in its own file."""
    global _enabled
    _enabled = bool(enabled)


def enabled():
    """Whether kernels may be picked."""
    return _enabled


def registered():
    """Every kernel, as (name of the function, device, kernel)."""
    return [(name, device, kernel) for (name, device), found in _kernels.items() for _, kernel in found]
