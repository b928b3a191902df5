"""The derivation and the code of a layer, as they stand in its file."""

import inspect
import sys
import textwrap
from pathlib import Path

from scratchnet import device
from scratchnet.kernels import use_kernels
from scratchnet.layers.join import SUM

ROOT = Path(__file__).parents[2]


def texts_of(layer, step=None):
    """(derivation, [(title, code), …]) of a layer, of a container that joins branches, or of a loss.

    The derivation is the docstring of the file. The code is, in this order, the pair of functions that computes it where no
    kernel may be chosen, the functions of its file that these and the class's methods name, and these methods.
    """
    with use_kernels(False):
        pair = layer.joined_by if step is not None and step.place else layer.pair(device.Kind("cpu", "float32"))
    functions = [*pair[:2]] if pair else []
    own = [] if step is not None and step.place else _methods(type(layer))
    module = sys.modules[(functions or own or [type(layer).forward])[0].__module__]
    named = [name for method in own for name in method.__code__.co_names]
    called = [vars(module)[name] for name in dict.fromkeys(named) if _is_function_of(vars(module).get(name), module)]
    if pair is SUM:
        called += [vars(module)["add"]]
    for function in functions:  # such as im2col, which a path of a convolution calls
        inner = (vars(module).get(name) for name in function.__code__.co_names)
        called += [f for f in inner if _is_function_of(f, module) and f not in functions]
    found = dict.fromkeys([*functions, *[f for f in called if not f.__name__.startswith("_")], *own])
    return inspect.getdoc(module) or "", [(_title(function), _code(function)) for function in found]


def _methods(cls):
    """Forward and backward, where the class or one above it in the same file has its own."""
    found = [next((vars(c)[name] for c in cls.__mro__ if name in vars(c)), None) for name in ("forward", "backward")]
    return [method for method in found if method and method.__module__ == cls.__module__]


def _is_function_of(value, module):
    return inspect.isfunction(value) and value.__module__ == module.__name__


def _title(function):
    lines, first = inspect.getsourcelines(function)
    path = Path(inspect.getsourcefile(function) or "")
    place = path.relative_to(ROOT).as_posix() if ROOT in path.parents else path.name
    return f"{function.__qualname__}, {place}, lines {first} to {first + len(lines) - 1}"


def _code(function):
    return textwrap.dedent(inspect.getsource(function)).rstrip()
