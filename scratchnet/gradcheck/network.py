"""A network's wrong gradient comes from one of its layers: which one, and which layers are not seen at all."""

from scratchnet.module import Module, Parameter
from scratchnet.plan import Plan
from scratchnet.sequential import Sequential
from scratchnet.steps import Fork, LayerStep


def inputs(module, x):
    """[(dotted name, layer, the x that the layer gets)] of a chain; nothing for a layer or a class with its own forward.

    Before the layers stand the containers with branches, whose joins may be wrong where each layer is right.
    """
    containers: list = []
    found: list = []
    if type(module).forward is not Sequential.forward:
        return found
    for step in Plan(module.inside(), None, fuse=False).steps:
        name, layer = step.names[0], step.layers[0]
        if type(step) is LayerStep:
            found.append((name, layer, x))
        elif isinstance(step, Fork) and layer is not module:
            containers.append((name, layer, x))
        x = step.forward(x)
    return containers + found


def first_wrong(module, x, check):
    """The error of the first layer, from the last one back, that `check` finds wrong; None where each is right alone.

    Args:
        module, x: a network, and its input.
        check: (layer, the x it gets, its dotted path and class) -> an error, or None.
    """
    found = (check(layer, given, f"{name} ({layer.name})") for name, layer, given in reversed(inputs(module, x)))
    return next(filter(None, found), None)


def require_registered(module):
    """Refuse layers and parameters in a list, tuple or dict, which no traversal of the module reaches.

    Raises:
        ValueError: there is one.
    """
    known = {id(part) for _, part in module.named_modules()} | {id(parameter) for parameter in module.parameters()}
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            for item in _items(value):
                if id(item) not in known:
                    raise ValueError(
                        f"{'.'.join(filter(None, (module.name, path, name)))} is a {type(value).__name__}: "
                        f"its {type(item).__name__} is not registered, put it in a Sequential or assign it as an attribute"
                    )


def _items(value):
    """The modules and parameters in lists, tuples and dicts, at any depth."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        if isinstance(item, Module | Parameter):
            yield item
        yield from _items(item)
