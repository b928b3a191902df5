"""Parameter groups: parameters that an optimizer moves with hyper-parameters of their own."""

from collections.abc import Iterable, MutableMapping
from typing import Any

from scratchnet.module import Parameter


class ParamGroup(MutableMapping):
    """Parameters with hyper-parameters of their own: {"params": […], "lr": …, "weight_decay": …, …}, as PyTorch has it.

    What is set between two steps holds from the next one on. A group's "lr" keeps its ratio to the optimizer's `lr`, which
    a schedule sets.

    Args:
        kind: the optimizer's class.
        params: name -> Parameter.
        options: the hyper-parameters that the optimizer was given.
        given: those of this group alone.

    Raises:
        ValueError: a value out of its range; a key that the optimizer does not have, or "params"; a momentum that begins or
            ends, which would want other slots; an "lr" while the optimizer's is 0, to which nothing has a ratio.
    """

    def __init__(self, kind, params, options, given):
        base = options["lr"]
        self._kind, self._values = kind, {"params": list(params.values())} | options
        self._base, self._own = base, base  # the optimizer's lr when this group's was set, and what it was set to
        self._now = base
        self.names = frozenset(params)
        for key, value in given.items():
            self._set(key, value)
        kind.require_consistent(self)

    def follow(self, lr):
        """Take over the optimizer's lr."""
        self._now = lr
        if self._own == self._base:
            self._values["lr"] = lr
        else:  # of lr alone, so that no rounding adds up from step to step
            self._values["lr"] = self._own if lr == self._base else lr * (self._own / self._base)

    def _set(self, key, value):
        name = self._kind.__name__
        if key == "params" or key not in self._values:
            takes = ", ".join(word for word in self._values if word != "params")
            raise ValueError(f"{name}: a parameter group has {takes} to set, got {key!r}")
        value = self._kind.checked(key, value)
        if key == "lr":
            if value != self._now == 0:
                raise ValueError(
                    f"{name}: a group's lr keeps its ratio to the optimizer's, which is 0: set that first, got {value}"
                )
            self._base, self._own = self._now, value
        self._values[key] = value

    def __setitem__(self, key, value):
        before, slots = vars(self).copy(), self._kind.slots(self)
        self._values = self._values.copy()
        try:
            self._set(key, value)
            self._kind.require_consistent(self)
            if self._kind.slots(self) != slots:
                raise ValueError(f"{self._kind.__name__}: {key} is used or is not from the first step on, got {value}")
        except ValueError:
            vars(self).update(before)
            raise

    def __getitem__(self, key):
        return self._values[key]

    def __delitem__(self, key):
        raise ValueError(f"{self._kind.__name__}: a parameter group has its {key!r} for good")

    def __iter__(self):
        return iter(self._values)

    def __len__(self):
        return len(self._values)

    def __repr__(self):
        return repr(self._values)


def named_groups(params: Iterable[Any], owner: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(name -> Parameter, hyper-parameters of its own) for each group, checked."""
    given = list(params)
    if not (given and all(isinstance(entry, dict) for entry in given)):
        given = [{"params": given}]
    groups: list = []
    seen: dict[str, Any] = {}
    for options in given:
        if "params" not in options:
            raise ValueError(f"{owner}: a parameter group is a dict with 'params', got one with {', '.join(options)}")
        named: dict[str, Any] = {}
        some = options["params"]
        for entry in [some] if isinstance(some, Parameter) else some:
            name, parameter = entry if isinstance(entry, tuple) else (str(len(seen)), entry)
            if not isinstance(parameter, Parameter):
                kind = type(parameter).__name__
                raise TypeError(f"{owner}: params must hold Parameters or (name, Parameter) pairs, got a {kind}")
            if name in seen or any(parameter is other for other in seen.values()):
                raise ValueError(f"{owner}: parameter '{name}' is given twice")
            named[name] = seen[name] = parameter
        groups.append((named, {key: value for key, value in options.items() if key != "params"}))
    if not seen:
        raise ValueError(f"{owner}: there are no parameters to optimize")
    return groups
