"""Containers: layers in a chain, and a chain with a shortcut around it.

The chain rule for y = fₙ(…f₂(f₁(x))) is dx = J₁ᵀ J₂ᵀ … Jₙᵀ dy: backward calls the layers in the reverse order and hands
each result on. At a fork the gradients of both ways add.
"""

from scratchnet import array, kernels, slabs
from scratchnet.module import Module
from scratchnet.threads import short_rows


class Sequential(Module):
    """Layers one after another: `Sequential(a, b)` names them 0, 1; `Sequential({"stem": a, …})` as you say.

    Raises:
        TypeError: something is not a Module.
        ValueError: a name has a dot, or is taken by an attribute that every module has.
    """

    _steps = None

    def __init__(self, *layers):
        named = layers[0] if len(layers) == 1 and isinstance(layers[0], dict) else dict(enumerate(layers))
        for name, layer in named.items():
            if not isinstance(layer, Module):
                raise TypeError(f"{self.name}: expected {name} to be a Module, got {type(layer).__name__}")
            if hasattr(self, str(name)):
                raise ValueError(
                    f"{self.name}: {name!r} cannot name a layer, every module has an attribute of that name"
                )
            if "." in str(name):
                raise ValueError(
                    f"{self.name}: {name!r} cannot name a layer, a dot leads from a layer to one inside it"
                )
            setattr(self, str(name), layer)

    def __getitem__(self, index):
        return self.named_children()[index][1]

    def __len__(self):
        return len(self.named_children())

    def chain(self):
        """(dotted name, layer) of every layer in order, the Sequentials inside opened up."""
        for name, layer in self.named_children():
            if type(layer) is Sequential:
                yield from ((f"{name}.{inner}", leaf) for inner, leaf in layer.chain())
            else:
                yield name, layer

    def drop_cache(self):
        """Forget the steps, and with them the slabs' own caches."""
        super().drop_cache()
        self._steps = None

    def forward(self, x):
        """Call every layer in order; channelwise neighbours are joined to one run, computed slab by slab."""
        self._steps = slabs.join_runs(self.chain())
        with short_rows():
            for step in self._steps:
                x = step.forward(x)
        return x

    def backward(self, dy):
        """Apply the chain rule, from the last layer to the first."""
        with short_rows():
            for step in reversed(self._steps or slabs.join_runs(self.chain())):
                dy = step.backward(dy)
        return dy


class Residual(Sequential):
    """A shortcut around its layers: y = x + f(x) (He et al. 2016, eq. 1), so dx = dy + Jᵀ dy.

    Raises:
        ValueError: f changes the shape, so that there is nothing to add to.
    """

    def forward(self, x):
        """Compute x + f(x)."""
        y = super().forward(x)
        if y.shape != x.shape:
            raise ValueError(
                f"{self.name}: the layers turn x of shape {x.shape} into {y.shape}, a shortcut needs equal shapes"
            )
        return kernels.run(add, x, y)

    def backward(self, dy):
        """Add what comes back through f to what comes back through the shortcut."""
        return kernels.run(add, dy, super().backward(dy))


def add(a, b):
    """A sum of activations, on their matrices: CuPy's `a + b` of two views would change the memory order."""
    return array.as_images(array.as_matrix(a) + array.as_matrix(b), a)
