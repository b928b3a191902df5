"""What the optimizers share: named parameters, slots shaped like them, the step count, and saving all of it.

Weight decay leaves out every parameter whose `decay` is False: batch norm's and biases have no scale to keep small. One
whose `requires_grad` is False is left alone altogether, whether it was frozen before the optimizer was made or after.
"""

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from scratchnet import kernels
from scratchnet.array import to_device
from scratchnet.device import device_of, kind_of, zeros_like
from scratchnet.flat import lay_flat
from scratchnet.training.archive import expect
from scratchnet.training.groups import ParamGroup, named_groups

ENDS = {"momentum": 1, "alpha": 1}  # of hyper-parameters that must stay below a number; the others have no end
SWITCHES = "nesterov", "centered"


class Group(list):
    """What an update goes over: ((data, grad, *slots), weight decay) for each parameter, or for many that lie side by side.

    Attributes:
        known: what a kernel has found out about these arrays, which stay the same ones as long as the group.
    """

    known: Any = None

    def __reduce__(self):
        """A copy has other arrays, of which nothing is known."""
        return Group, (list(self),)

    def is_still(self, group):
        """Whether the other has the same arrays, in the same order."""
        return len(self) == len(group) and all(
            decay == other_decay and all(map(operator.is_, arrays, others))
            for (arrays, decay), (others, other_decay) in zip(self, group, strict=True)
        )


class Optimizer:
    """The base of `SGD`, `Adam`, `AdamW` and `RMSprop`.

    A parameter's array is updated in place, never replaced. (On a GPU it moves once, when the optimizer is made: all
    parameters lie in one array then, so that one launch updates those of a group, `flat.py`.)

    Args:
        params: Parameters, or (name, Parameter) pairs as `module.named_parameters()` gives them. The names become
            the keys of the slots; without names these are "0", "1", …
            Or groups: dicts with such "params", and any of the optimizer's other arguments for these alone.
        lr: learning rate, at least 0; set `lr` between steps to follow a schedule: a group that was given a rate of its own
            keeps its ratio to it.
        options: the hyper-parameters of groups that do not say otherwise, checked by `checked`.

    Attributes:
        param_groups: the `ParamGroup`s, one where no groups were given; their values can be set between steps.
        before_step: called with the optimizer before every step, where set: to look at the gradients, or to clip them
            (`clip_grad_norm_`). What it raises keeps the step from happening.

    One step count serves all parameters. To Adam one that was frozen for a while is therefore as old as the others, with
    means that begin at 0: a new optimizer begins all of it anew.

    Raises:
        ValueError: a hyper-parameter out of its range, no parameters, or one of them twice.
    """

    before_step: Callable[["Optimizer"], None] | None = None

    def __init__(self, params: Iterable[Any], **options):
        options = {key: self.checked(key, value) for key, value in options.items()}
        self._lr = options["lr"]
        found = named_groups(params, type(self).__name__)
        self.params = {name: parameter for named, _ in found for name, parameter in named.items()}
        self.param_groups = [ParamGroup(type(self), named, options, given) for named, given in found]
        self._groups: list = [None] * len(found)
        self.steps = 0
        place = {name: k for k, group in enumerate(self.param_groups) for name in group.names}
        self._flat = lay_flat(self.params)  # in the order of the groups
        slots = {name: self.slots(self.param_groups[k]) for name, k in place.items()}
        every = dict.fromkeys(slot for some in slots.values() for slot in some)
        self._whole = {slot: zeros_like(self._flat.data) for slot in every} if self._flat else {}
        self._slots = {
            name: {
                slot: self._flat.view(self._whole[slot], name) if self._flat else zeros_like(p.data)
                for slot in slots[name]
            }
            for name, p in self.params.items()
        }
        arrays = {name: parameter.data for name, parameter in self.params.items()}
        self._arrays = {name: (type(data), data.dtype, data.shape) for name, data in arrays.items()}

    @property
    def lr(self) -> float:
        """The learning rate of the next step, and what those of groups with one of their own are a multiple of."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = self.checked("lr", value)
        for group in self.param_groups:
            group.follow(self._lr)

    def step(self) -> None:
        """Move every parameter by its gradient as it stands in `parameter.grad`.

        Raises:
            ValueError: a parameter changed its device, dtype or shape since the optimizer was made.
        """
        for name, parameter in self.params.items():
            data = parameter.data
            if (type(data), data.dtype, data.shape) != self._arrays[name] or self._flat not in (None, parameter.home):
                raise ValueError(
                    f"{type(self).__name__}: parameter '{name}' changed its device, dtype or shape since the "
                    f"optimizer was made: make the optimizer after .to() and .astype()"
                )
        if self.before_step:
            self.before_step(self)
        self.steps += 1
        trained = {name for name, parameter in self.params.items() if parameter.requires_grad}
        for k, options in enumerate(self.param_groups):
            group, known = Group(self._parts(options, trained)), self._groups[k]
            if known is None or not known.is_still(group):
                self._groups[k] = group
            if group:
                self._update(self._groups[k], options)

    def state_dict(self) -> dict[str, Any]:
        """Copies of the slots, "slot/parameter name" -> array, and "step" -> int64 array of shape ()."""
        state = {key: slot.copy() for key, slot in self._named_slots()}
        return state | {"step": np.array(self.steps, np.int64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, from NumPy or CuPy arrays alike; nothing changes when it does not fit.

        Raises:
            ValueError: a key is missing or unknown, or an array has another shape or dtype.
        """
        what = f"state of {type(self).__name__}"
        expect(state, self.state_dict(), what)
        if int(state["step"]) < 0:
            raise ValueError(f"{what}: step must be at least 0, got {int(state['step'])}")
        for key, slot in self._named_slots():
            slot[...] = to_device(state[key], device_of(slot))
        self.steps = int(state["step"])

    # What an optimizer says of itself -----------------------------------------------------------------------------------

    @classmethod
    def checked(cls, key: str, value: Any) -> Any:
        """A hyper-parameter, as a Python number."""
        if key in SWITCHES:
            return bool(value)
        if key == "betas":
            if len(value) != 2:
                raise ValueError(f"{cls.__name__}: betas must be two numbers in [0, 1), got {value}")
            return tuple(cls._within(f"betas[{k}]", beta, 1) for k, beta in enumerate(value))
        return cls._within(key, value, ENDS.get(key, math.inf))

    @classmethod
    def slots(cls, options) -> tuple[str, ...]:
        """The names of the slots of parameters with these hyper-parameters."""
        raise NotImplementedError

    @classmethod
    def require_consistent(cls, options) -> None:
        """Raise ValueError where hyper-parameters do not fit together."""

    def _update(self, group, options) -> None:
        raise NotImplementedError

    # ----------------------------------------------------------------------------------------------------------------------

    def _parts(self, options, trained):
        """What is updated at a time: the entries of a `Group`."""
        weight_decay, slots = options["weight_decay"], self.slots(options)
        if self._flat:
            arrays = self._flat.data, self._flat.grad, *(self._whole[slot] for slot in slots)
            for part, decay in self._flat.runs(options.names & trained):
                yield tuple(array[part] for array in arrays), decay * weight_decay
        else:
            for name, p in self.params.items():
                if name in options.names and name in trained:
                    yield (p.data, p.grad, *self._slots[name].values()), p.decay * weight_decay

    def _run(self, rule, group, *options) -> None:
        kernels.choose(kernels.Pair(rule), kind_of(group[0][0][0])).forward(group, *options)

    def _named_slots(self) -> Iterator[tuple[str, Any]]:
        for name, slots in self._slots.items():
            for slot, array in slots.items():
                yield f"{slot}/{name}", array

    @classmethod
    def _within(cls, what: str, value: float, end: float) -> float:
        if not 0 <= value < end:  # NaN fails both comparisons
            raise ValueError(f"{cls.__name__}: {what} must be in [0, {end}), got {value}")
        return float(value)  # a NumPy scalar would turn float32 into float64
