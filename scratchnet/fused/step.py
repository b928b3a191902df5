"""What a fused step does whatever it computes: it checks as its layers would, and keeps what its backward needs, once."""

from scratchnet import kernels
from scratchnet.cache import OneShotCache, located
from scratchnet.device import kind_of
from scratchnet.layers.activation import ReLU6
from scratchnet.layers.conv import Conv2d
from scratchnet.layers.norm import BatchNorm2d
from scratchnet.windows import output_size


def norm_follows(conv, norm):
    """Whether this is a convolution with a batch norm for its channels behind it."""
    return type(conv) is Conv2d and type(norm) is BatchNorm2d and conv.out_channels == norm.weight.data.size


class FusedStep(OneShotCache):
    """Convolution, batch norm and ReLU6 in training, as one.

    Attributes:
        names, layers: the three layers' dotted names, and the layers.
        plain: the `kernels.Pair` of the file's own functions; a class says its own.
    """

    plain: kernels.Pair

    @classmethod
    def matches(cls, layers):
        """Whether these are three such layers, in training mode, with a convolution that this step can take."""
        if [type(layer) for layer in layers] != [Conv2d, BatchNorm2d, ReLU6]:
            return False
        conv, norm, _ = layers
        saving = norm.training and all(layer.saves for layer in layers)
        return norm_follows(conv, norm) and saving and cls.takes(conv)

    @staticmethod
    def takes(conv):
        """Whether the step can take this convolution."""
        raise NotImplementedError

    def __init__(self, names, layers):
        self.names, self.layers = names, layers

    @property
    def name(self):
        """That of the last layer, whose dy it is."""
        return self.layers[-1].name

    def pair(self, kind):
        """The pair that computes it for arrays of a kind."""
        return kernels.choose(self.plain, kind)

    def forward(self, x):
        """Compute y, as the three layers would."""
        conv, norm, _ = self.layers
        self.drop_cache()
        for layer in self.layers:
            layer.drop_cache()
        with located(self.names[0]):
            conv.check(x)
        if len(x) == 1:  # else there are two values a channel in any case
            sizes = zip(x.shape[2:], conv.kernel_size, *conv.geometry, strict=True)
            with located(self.names[1]):
                norm.require_batch((1, conv.out_channels, *(output_size(*axis) for axis in sizes)))
        pair = self.pair(kind_of(x))
        y, mean, var, cache = self.compute(pair.forward, x)
        norm.track(mean, var, y.size // y.shape[1])
        self.save_cache((pair.backward, cache), y)
        return y

    def backward(self, dy):
        """Return dx; add to the gradients of convolution and batch norm."""
        conv, norm, _ = self.layers
        with located(self.names[-1]):
            backward, cache = self.take_cache(dy)
        dx, dweight, dgamma, dbeta = self.differentiate(backward, dy, cache)
        conv.weight.grad += dweight
        norm.weight.grad += dgamma
        norm.bias.grad += dbeta
        return dx

    def compute(self, forward, x):
        """y (N, O, OH, OW), mean and biased variance before batch norm (O,), and the cache."""
        raise NotImplementedError

    def differentiate(self, backward, dy, cache):
        """dx, and the gradients of the convolution's weight and of batch norm's weight and bias."""
        return backward(dy, cache)
