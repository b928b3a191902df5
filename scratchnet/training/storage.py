"""Where an optimizer's slots lie, and what it updates at a time: each parameter by itself, or all of them in one array."""

from scratchnet.array import get_array_module
from scratchnet.flat import lay_flat


def storage(params, slots):
    """`Together` where the parameters can be laid side by side (flat.py), else `Separate`."""
    flat = lay_flat(params)
    return Together(flat, params, slots) if flat else Separate(params, slots)


class Separate:
    """Slots like each parameter.

    Attributes:
        slots: parameter's name -> slot's name -> array, zeros at first.
    """

    def __init__(self, params, slots):
        arrays = {name: parameter.data for name, parameter in params.items()}
        self.params = params
        self.slots = {
            name: {slot: get_array_module(data).zeros_like(data) for slot in slots} for name, data in arrays.items()
        }
        self._scratch = _shared_scratch(arrays)

    def holds(self, parameter):
        """Whether a parameter still is where it was."""
        return True

    def parts(self):
        """What is updated at a time: (data, grad, slots, scratch, whether weight decay applies)."""
        for name, p in self.params.items():
            yield p.data, p.grad, self.slots[name], self._scratch[name], p.decay


class Together:
    """Slots like the one array of all parameters: one update for those with weight decay, one for the others.

    Attributes:
        slots: parameter's name -> slot's name -> array, views of the one array of each slot.
    """

    def __init__(self, flat, params, slots):
        self._flat = flat
        self._whole = {slot: get_array_module(flat.data).zeros_like(flat.data) for slot in slots}
        self.slots = {name: {slot: flat.view(value, name) for slot, value in self._whole.items()} for name in params}

    def holds(self, parameter):
        """Whether a parameter still is where it was: `.to()` and `.astype()` take it away."""
        return parameter.home is self._flat

    def parts(self):
        """What is updated at a time: (data, grad, slots, None, whether weight decay applies)."""
        xp = get_array_module(self._flat.data)
        for part, decay in self._flat.parts:
            data, slots = self._flat.data[part], {name: slot[part] for name, slot in self._whole.items()}
            yield data, self._flat.grad[part], slots, _Scratch(xp, data), decay


class _Scratch:
    """Two work arrays, made only where an update unpacks them: kernels need none."""

    def __init__(self, xp, data):
        self._xp, self._data = xp, data

    def __iter__(self):
        return iter([self._xp.empty_like(self._data) for _ in range(2)])


def _shared_scratch(arrays):
    """Two work arrays shaped like each array, all of them views of one pair as large as the largest."""
    pools: dict = {}
    for data in sorted(arrays.values(), key=lambda array: array.size, reverse=True):
        pools.setdefault(data.dtype, get_array_module(data).empty((2, data.size), data.dtype))
    views = {name: pools[data.dtype][:, : data.size] for name, data in arrays.items()}
    return {name: tuple(row.reshape(arrays[name].shape) for row in view) for name, view in views.items()}
