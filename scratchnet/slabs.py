"""Slabs: a run of channelwise layers, computed a few channels at a time so that they stay in the cache.

A layer is channelwise when row c of its output needs row c of its input only: batch norm, ReLU6, depthwise convolution,
pooling. Three such layers in a row, one after the other over a whole activation, move that activation through main memory
three times. Cut into slabs of a few channels, a slab goes through all three while it lies in the cache, and different
slabs go to different threads with nothing to synchronise:

    for rows in slabs:  x[rows] -> batch norm -> ReLU6 -> depthwise -> … -> y[rows]

The layers need no code for it. A channelwise layer over the channels c₀…c₁ *is* the same layer over views of its
parameters, gradients and buffers (`Module.slab`), with a cache of its own.

How an activation is cut depends on its shape alone, never on the number of threads: the same bits for any thread count.
"""

import threading
from contextlib import contextmanager

from scratchnet import array
from scratchnet.threads import parallel

SLAB_BYTES = 2 << 20  # measured: smaller slabs pay more for Python and its lock than they win from the inner caches
PARALLEL_BYTES = 2 << 20  # below this a slab is done sooner than a second thread wakes (some 0.3 ms)


_fusions: list[tuple] = []  # (how many layers, the step that computes them as one)


def fusion(count):
    """Decorate a step: where its `matches(layers)` is true of `count` layers in a row, it takes their place."""

    def decorate(step):
        _fusions.append((count, step))
        return step

    return decorate


def join_runs(chain):
    """Steps of a chain of (name, layer): fused neighbours, runs of channelwise ones, every other layer by itself."""
    todo = list(chain)
    steps: list[Run] = []
    while todo:
        for count, step in _fusions:
            if len(todo) >= count and step.matches([layer for _, layer in todo[:count]]):
                break
        else:
            count, step = 1, Run
        if step is Run and steps and type(steps[-1]) is Run and todo[0][1].channelwise and steps[-1].channelwise:
            steps[-1].layers.append(todo[0])
        else:
            steps.append(step(todo[:count]))
        todo = todo[count:]
    return steps


class Run:
    """Neighbouring layers that are computed together. Like a layer it has a forward and a backward.

    Between the two it holds what each slab of each layer saved (`caches`), or nothing where the layers themselves ran.
    """

    def __init__(self, layers):
        self.layers = layers
        self.caches = None

    @property
    def channelwise(self):
        """Whether the run may be cut into slabs."""
        return all(layer.channelwise for _, layer in self.layers)

    def forward(self, x):
        """Compute y, slab by slab where there are several."""
        slabs = cut(x) if self.channelwise and self.fits(x) else []
        if len(slabs) < 2:
            self.caches = None
            return _forward(self.layers, x)
        parts = [(rows, self._slab(rows)) for rows in slabs]
        y = _gather(lambda rows, part: _forward(part, x[:, rows]), parts, x.shape[1])
        self.caches = [(rows, [layer._cache for _, layer in part]) for rows, part in parts]
        self.expected = y.shape, y.dtype
        return y

    def backward(self, dy):
        """Compute dx, over the slabs of forward."""
        if self.caches is None:
            return _backward(self.layers, dy)
        self.require_gradient(dy)  # here, since a slab would see its own rows of dy only
        parts = [(rows, self._slab(rows, caches)) for rows, caches in self.caches]
        self.caches = None
        return _gather(lambda rows, part: _backward(part, dy[:, rows]), parts, dy.shape[1])

    def _slab(self, rows, caches=None):
        """The layers over some channels, with what their forward saved where that is given."""
        part = [(name, layer.slab(rows)) for name, layer in self.layers]
        for (_, layer), cache in zip(part, caches or (), strict=caches is not None):
            layer._cache = cache
        return part

    def fits(self, x, channels=None):
        """Whether x has as many channels as each layer; if not, the layers themselves say so, about the whole of x."""
        wanted = {channels} if channels else {len(p.data) for _, layer in self.layers for p in layer.parameters()}
        return array.is_array(x) and x.ndim > 1 and wanted <= {x.shape[1]}

    def require_gradient(self, dy):
        """Refuse a dy that is not like the y of forward, in the name of the last layer."""
        name, last = self.layers[-1]
        with located(name):
            last.require_gradient(dy, *self.expected)


def _forward(layers, x):
    for name, layer in layers:
        with located(name):
            x = layer.forward(x)
    return x


def _backward(layers, dy):
    for name, layer in reversed(layers):
        with located(name):
            dy = layer.backward(dy)
    return dy


def _gather(compute, parts, channels):
    """One array of all channels from what `compute(rows, part)` gives for each slab."""
    whole = None
    lock = threading.Lock()

    def one(part):
        nonlocal whole
        rows, layers = part
        maps = array.as_maps(compute(rows, layers))
        with lock:  # the first slab that is done tells the shape
            if whole is None:
                whole = array.get_array_module(maps).empty((channels, *maps.shape[1:]), maps.dtype)
        whole[rows] = maps

    parallel(one, parts)
    return array.as_images(whole)


def cut(x, passes=10):
    """The slabs of x (N, C, H, W), as slices of C: about SLAB_BYTES each, and an even number of them for two cores.

    On a GPU, and where x is small or not laid out channel-major, one slab is everything. Small is what little work it is:
    `passes` says how often what is to be done goes over x, or how often it would in the time that it takes.
    """
    channels = x.shape[1]
    if array.device_of(x) != "cpu" or x.nbytes * passes < 20 * PARALLEL_BYTES or not as_rows_is_view(x):
        return [slice(0, channels)]
    count = max(2, -(-x.nbytes // SLAB_BYTES))
    return split(channels, count + count % 2)


def as_rows_is_view(x):
    """Whether a slab of x is a contiguous piece of memory."""
    return x.transpose(*range(1, x.ndim), 0).flags.c_contiguous


def split(size, count):
    """`range(size)` in `count` nearly equal slices, none of them empty."""
    count = min(count, size)
    return [slice(size * k // count, size * (k + 1) // count) for k in range(count)]


@contextmanager
def located(name):
    """Put a layer's name before the message of any error that passes: "4 Conv2d: …", then "features.4 Conv2d: …"."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        seen = vars(error)  # a wrapped message remembers its path and its text
        seen.setdefault("text", str(error))
        seen["path"] = [name, *seen.get("path", [])]
        error.args = (f"{'.'.join(seen['path'])} {seen['text']}",)
        raise
