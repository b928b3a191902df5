"""Parameters side by side in one array, on a GPU: what is done to all of them is then one launch instead of hundreds.

A small network's parameters are many and small, and a launch takes longer than the arithmetic on most of them. An
optimizer therefore lays the parameters that it is given side by side, those with weight decay first, and their gradients
likewise; each `parameter.data` and `parameter.grad` becomes a view. On the CPU nothing is moved: a call costs little there.
"""

from scratchnet.device import device_of, get_array_module

ALIGN = 64  # numbers: every parameter begins at a multiple, where matrix products and wide loads are at their fastest


class Flat:
    """Parameters of one dtype in one array, their gradients in another.

    Attributes:
        data, grad: the two arrays, each with one axis.
    """

    def __init__(self, named):
        ordered = sorted(named.items(), key=lambda item: not item[1].decay)  # stable: else as they were, group by group
        xp = get_array_module(ordered[0][1].data)
        self._places: dict = {}
        start = 0
        for name, parameter in ordered:
            self._places[name] = slice(start, start + parameter.data.size), parameter.data.shape, parameter.decay
            start += -(-parameter.data.size // ALIGN) * ALIGN
        dtype = ordered[0][1].data.dtype
        self.data, self.grad = xp.zeros(start, dtype), xp.zeros(start, dtype)  # what lies between stays 0
        for name, parameter in ordered:
            data, grad = self.view(self.data, name), self.view(self.grad, name)
            data[...], grad[...] = parameter.data, parameter.grad
            parameter.data, parameter.grad, parameter.home = data, grad, self
        self._pointers = [parameter.grad.data.ptr for _, parameter in ordered]

    def view(self, array, name):
        """The part of a flat array that belongs to a parameter, in its shape."""
        place, shape, _ = self._places[name]
        return array[place].reshape(shape)

    def runs(self, names):
        """[(slice of the arrays, whether weight decay applies)] of these parameters, neighbours of one kind together."""
        runs: list = []
        before = None
        for name, (place, _, decay) in self._places.items():
            if name not in names:
                before = None
                continue
            start = runs.pop()[0].start if decay is before else place.start
            runs.append((slice(start, place.stop), decay))
            before = decay
        return runs

    def is_all_of(self, parameters):
        """Whether these are its parameters, all of them, and their gradients still lie in it: `.to()` takes them away."""
        return sorted(p.grad.data.ptr for p in parameters) == sorted(self._pointers)


def lay_flat(named):
    """The `Flat` of named parameters, or None: on the CPU, of several dtypes, or where one lies in another already."""
    arrays = [parameter.data for parameter in named.values()]
    on_device = all(device_of(array) == "cuda" for array in arrays)
    if not on_device or len({array.dtype for array in arrays}) > 1 or any(p.home for p in named.values()):
        return None
    return Flat(named)


def gradients(parameters):
    """The parameters' gradients; in one array where that is all that it holds."""
    homes = {id(p.home): p.home for p in parameters}
    home = homes.popitem()[1] if len(homes) == 1 else None
    if home is not None and home.is_all_of(parameters):
        return [home.grad]
    return [parameter.grad for parameter in parameters]
