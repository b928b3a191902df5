"""A network's wrong gradient comes from one of its layers: which one, and which layers are not seen at all."""

from scratchnet.module import Module, Parameter
from scratchnet.sequential import Residual, Sequential


def inputs(module, x):
    """[(name, layer, the x that the layer gets)] of a chain; nothing for a layer or a class with a forward of its own."""
    if type(module).forward not in (Sequential.forward, Residual.forward):
        return []
    steps = []
    for name, layer in module.named_children():
        steps.append((name, layer, x))
        x = layer.forward(x)
    return steps


def first_wrong(module, x, check, path=""):
    """The innermost layer's error, of the first layer from the last one back that `check` finds wrong.

    Args:
        module, x: a network, and its input.
        check: (layer, the x it gets, its dotted path and class) -> an error, or None.
        path: of the module, for the recursion.
    """
    for name, layer, given in reversed(inputs(module, x)):
        if error := check(layer, given, f"{path}{name} ({type(layer).__name__})"):
            return first_wrong(layer, given, check, f"{path}{name}.") or error
    return None


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
