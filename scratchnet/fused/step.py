"""What a fused step does whatever it computes: it checks as its layers would, and keeps what its backward needs, once."""

from itertools import chain
from typing import Any

from scratchnet import kernels
from scratchnet.array import as_images, as_maps
from scratchnet.cache import OneShotCache, located
from scratchnet.device import kind_of
from scratchnet.layers.activation import ReLU6
from scratchnet.layers.conv import Conv2d
from scratchnet.layers.norm import BatchNorm2d
from scratchnet.parameter import add_gradients
from scratchnet.windows import output_size


def norm_follows(conv, norm):
    """Whether this is a convolution with a batch norm for its channels behind it."""
    return type(conv) is Conv2d and type(norm) is BatchNorm2d and conv.out_channels == norm.weight.data.size


class FusedStep(OneShotCache):
    """Convolutions, each with batch norm and most with ReLU6, in training, as one.

    Attributes:
        names, layers: the layers' dotted names, and the layers, those of the pattern first.
        stages: (convolution, batch norm) for each convolution in it, in order.
        pattern: the classes of the layers; a class says its own.
        plain: the `kernels.Pair` of the file's own functions; a class says its own.
        title: what a plan prints for it, where the layers' classes would be too long.
        needs_kernel: whether the layers are steps of their own where no kernel computes all of them.
    """

    plain: kernels.Pair
    pattern: tuple = (Conv2d, BatchNorm2d, ReLU6)
    title: Any = ""
    needs_kernel = False

    @classmethod
    def matches(cls, layers):
        """Whether these are such layers, in training mode, with convolutions that this step can take."""
        if tuple(type(layer) for layer in layers) != cls.pattern:
            return False
        stages = stages_of(layers)
        saving = all(layer.saves for layer in layers) and all(norm.training for _, norm in stages)
        return saving and all(norm_follows(*stage) for stage in stages) and cls.takes(*(conv for conv, _ in stages))

    @staticmethod
    def takes(*convs):
        """Whether the step can take these convolutions."""
        raise NotImplementedError

    def __init__(self, names, layers):
        self.names, self.layers, self.stages = names, layers, stages_of(layers)
        self._checked, self._shapes = None, []

    @property
    def name(self):
        """That of the last layer, whose dy it is."""
        return self.layers[-1].name

    def parameters(self):
        """(name, Parameter) pairs of convolutions and batch norms, by the layers' dotted names."""
        for layer in (layer for stage in self.stages for layer in stage):
            for key, parameter in layer.named_parameters():
                yield f"{self.names[self.layers.index(layer)]}.{key}", parameter

    def forget(self):
        """Let go of what forward kept for a backward that does not come by."""
        self.drop_cache()

    def computes_what_is_frozen(self):
        """Whether its backward would make the gradient of a frozen convolution; batch norm's sums are in its dx anyway."""
        return self.saves and not all(conv.weight.requires_grad for conv, _ in self.stages)

    def pair(self, kind):
        """The pair that computes it for arrays of a kind."""
        return kernels.choose(self.plain, kind)

    def forward(self, x):
        """Compute y, as the layers would."""
        self.drop_cache()
        for layer in self.layers[: len(self.pattern)]:
            layer.drop_cache()
        with located(self.names[0]):
            self.stages[0][0].check(x)
        if x.shape != self._checked:
            self._shapes, self._checked = self._checked_shapes(x.shape), x.shape
        pair = self.pair(kind_of(x))
        y, *moments, cache = self.compute(pair.forward, x)
        for (_, norm), shape, mean, var in zip(self.stages, self._shapes, moments[::2], moments[1::2], strict=True):
            with located(self.names[self.layers.index(norm)]):
                norm.track(mean, var, shape[0] * shape[2] * shape[3])
        self.save_cache((pair.backward, cache), y)
        return y

    def backward(self, dy):
        """Return dx; add to the gradients of convolutions and batch norms."""
        with located(self.names[-1]):
            backward, cache = self.take_cache(dy)
        dx, *gradients = self.differentiate(backward, dy, cache)
        parameters = [p for conv, norm in self.stages for p in (conv.weight, norm.weight, norm.bias)]
        add_gradients(parameters, gradients[: len(parameters)])
        return dx

    def compute(self, forward, x):
        """y; mean and biased variance of each convolution's output, before batch norm; and the cache."""
        raise NotImplementedError

    def differentiate(self, backward, dy, cache):
        """dx, and for each stage the gradients of the convolution's weight and of batch norm's weight and bias."""
        return backward(dy, cache)

    def _checked_shapes(self, shape):
        """The shape of each convolution's output for x of a shape, checked as what follows it would."""
        shapes = []
        for k, (conv, norm) in enumerate(self.stages):
            if k:
                with located(self.names[self.layers.index(conv)]):
                    conv.require_room(shape)
            sizes = zip(shape[2:], conv.kernel_size, *conv.geometry, strict=True)
            shape = shape[0], conv.out_channels, *(output_size(*axis) for axis in sizes)
            with located(self.names[self.layers.index(norm)]):
                norm.require_batch(shape)
            shapes.append(shape)
        return shapes


class MapsStep(FusedStep):
    """A step whose functions take and return activations as they lie in memory, (C, H, W, N)."""

    def compute(self, forward, x):  # noqa: D102
        parameters = [(conv.weight.data, norm.weight.data, norm.bias.data, norm.eps) for conv, norm in self.stages]
        y, *rest = forward(as_maps(x), *chain.from_iterable(parameters), *self.stages[-1][0].geometry)
        return as_images(y), *rest

    def differentiate(self, backward, dy, cache):  # noqa: D102
        dx, *gradients = backward(as_maps(dy), cache)
        return as_images(dx), *gradients


def stages_of(layers):
    """(convolution, batch norm) for each convolution."""
    return [(layer, layers[k + 1]) for k, layer in enumerate(layers) if type(layer) is Conv2d]
