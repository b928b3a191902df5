"""Which arrays something holds: so that what forward keeps for backward can be counted, not guessed.

A layer saves what it likes: arrays, views of them, tuples of both, a function that has some. All of it hangs on the step or
on its layers, and is found by going along attributes, items and closures. A view keeps the whole array alive that it is a
view of, so that one is what counts, and it counts once, however many hold it.
"""

import functools
import types

from scratchnet import device

_CLOSED = type, types.ModuleType, types.BuiltinFunctionType, str, bytes, int, float, complex, bool, type(None)


def arrays_of(*roots):
    """{address: array} of all arrays that can be reached from these, each the one that owns its memory."""
    found, seen, waiting = {}, set(), list(roots)
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, _CLOSED) or id(thing) in seen:
            continue
        seen.add(id(thing))
        if device.is_array(thing):
            owner = _owner(thing)
            found[_address(owner)] = owner
        else:
            waiting += _parts(thing)
    return found


def held_by(step):
    """`arrays_of` a step of a plan and the modules in it."""
    modules = [module for layer in step.layers for _, module in layer.named_modules()]
    return arrays_of(step, *modules)


def _parts(thing):
    if isinstance(thing, dict):
        return [*thing.values()]
    if isinstance(thing, (tuple, list, set, frozenset)):
        return [*thing]
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, types.MethodType):
        return [thing.__self__]
    if isinstance(thing, types.FunctionType):
        return [cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell)]
    return [*vars(thing).values()] if hasattr(thing, "__dict__") else []


def _is_filled(cell):
    try:
        cell.cell_contents  # noqa: B018 (reading it is the question)
    except ValueError:
        return False
    return True


def _owner(array):
    """The array whose memory this one is a view of; an array that the library's buffers lent is one (kernels/cpu)."""
    while type(array.base) is type(array):
        array = array.base
    return array


def _address(array):
    return array.data.ptr if device.device_of(array) == "cuda" else array.ctypes.data
