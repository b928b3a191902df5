"""A network at inference as one program: no Python and no new array between its layers.

Where nothing is saved and batch norm is folded (inference.py), a network of convolutions is a list of products with little
between them. Let the columns of X be the pixels of all pictures, picture after picture. There are then
    Y = W X + b                         1×1 convolution, or linear layer; clipped where ReLU6 follows, and plus X' where a
                                        shortcut ends                                                   (PROG.1)
    Y = W cols(X) + b                   any other convolution of one group: cols as in layers/conv.py   (PROG.2)
    y_c = clip(Σ_ij w_cij x_c[pixel that tap (i, j) reads] + b_c)      depthwise 3×3                    (PROG.3)
and the mean over a picture. An expansion and the depthwise convolution behind it are one operation, a few channels at a
time: what lies between them, six times as wide as the block's input, never leaves the inner cache.

`joined` puts a `ProgramStep` in the place of a plan's steps that are such. The loops, and where they read and write
what, are in kernels/compiled/ (walk.py, lowering.py, program.py). An input that the layers would refuse goes to the
steps themselves, for their messages.
"""

from typing import Any, NamedTuple

import numpy as np

from scratchnet import kernels
from scratchnet.kernels import compiled
from scratchnet.layers.activation import ReLU6
from scratchnet.layers.conv import Conv2d
from scratchnet.layers.dropout import Dropout
from scratchnet.layers.linear import Flatten, Linear
from scratchnet.layers.pool import GlobalAvgPool2d
from scratchnet.windows import output_size

WINDOWS = [((3, 3), (stride, stride), (1, 1), (1, 1)) for stride in (1, 2)]  # of a depthwise convolution
MOST = 8  # sizes of pictures whose programs are kept
FEWEST = 2  # layers with weights that are worth a program


class Part(NamedTuple):
    """An operation of a program, as far as it does not depend on the size of x; values are numbered, part k makes k + 1.

    Attributes:
        kind: "product", "expand", "taps", "dense", "mean" or "turn".
        steps: of the plan, which it computes.
        x, more: the values that it reads; more is what a shortcut adds, or None.
        main: the layer that multiplies, or None; `clip`: whether ReLU6 follows it.
        taps: the depthwise layer, or None; `clip_taps`: whether ReLU6 follows it.
        flat: whether what it makes is (N, F), not (N, C, H, W).
    """

    kind: str
    steps: tuple
    x: int
    more: int | None = None
    main: Any = None
    clip: bool = False
    taps: Any = None
    clip_taps: bool = False
    flat: bool = False


def joined(steps, kind):
    """Steps of a plan, in which those that are a program are one `ProgramStep`. kind: of the arrays that will come."""
    if kind is None or kind.device != "cpu" or kind.dtype not in kernels.REAL or kernels.enabled() != "compiled":
        return steps
    found, first = [], 0
    while first < len(steps):
        parts, end = _read(steps[first:])
        if sum((part.main is not None) + (part.taps is not None) for part in parts) >= FEWEST and _compiles():
            found.append(ProgramStep(steps[first : first + end], parts))
            first += end
        else:
            found.append(steps[first])
            first += 1
    return found


def _compiles():
    if compiled.why_not():
        return False
    from scratchnet.kernels.compiled.lanes import FUSES

    return FUSES


def _read(steps):
    """The parts of as many of these steps as can be one program, and how many that are."""
    parts: list[Part] = []
    whole: tuple = parts, 0  # what ends outside of all shortcuts
    forks: list[int] = []
    for count, step in enumerate(steps, 1):
        place = getattr(step, "place", None)
        if place is None:
            more = _with_layers(parts, step, forks)
        elif place == "open":
            forks.append(len(parts))
            more = parts
        else:
            more = _with_shortcut(parts, step, forks) if getattr(step, "adds_two", False) else None
        if more is None:
            break
        parts = more
        if not forks:
            whole = parts, count
    return whole


def _with_shortcut(parts, step, forks):
    """The parts, the last of which adds what went into the shortcut; None where it cannot."""
    x = forks.pop() if forks else len(parts)
    if x == len(parts) or parts[-1].kind not in ("product", "dense") or len(parts) in forks:
        return None
    if parts[-1].clip or parts[-1].more is not None:
        return None
    return [*parts[:-1], parts[-1]._replace(steps=(*parts[-1].steps, step), more=x)]


def _with_layers(parts, step, forks):
    """The parts, and what this step is; None where it is nothing for a program."""
    layer, *others = step.layers
    if any(part.saves or part.training for part in step.layers) or any(type(other) is not ReLU6 for other in others):
        return None
    clip, before, x = bool(others), parts[-1] if parts else None, len(parts)
    flat = before is not None and before.flat
    if type(layer) is Conv2d and not flat:
        if layer.path == "pointwise" and layer.stride == (1, 1):
            return [*parts, Part("product", (step,), x, main=layer, clip=clip)]  # (PROG.1)
        if layer.groups == 1:
            return [*parts, Part("dense", (step,), x, main=layer, clip=clip)]  # (PROG.2)
        if layer.window not in WINDOWS or not layer.groups == layer.in_channels == layer.out_channels:
            return None
        if before and before.kind == "product" and before.more is None and x not in forks:
            more = {"kind": "expand", "steps": (*before.steps, step), "taps": layer, "clip_taps": clip}
            return [*parts[:-1], before._replace(**more)]
        return [*parts, Part("taps", (step,), x, taps=layer, clip_taps=clip)]  # (PROG.3)
    if clip:
        return None
    if type(layer) is Dropout and parts:
        return [*parts[:-1], parts[-1]._replace(steps=(*parts[-1].steps, step))]
    if type(layer) is GlobalAvgPool2d and not flat:
        return [*parts, Part("mean", (step,), x)]
    if type(layer) is Flatten and parts:
        return [*parts, Part("turn", (step,), x, flat=True)]
    if type(layer) is Linear and flat:
        return [*parts, Part("product", (step,), x, main=layer, flat=True)]
    return None


class ProgramStep:
    """Steps of a plan as one program; what it cannot compute they do."""

    def __init__(self, steps, parts):
        self.steps, self.parts = steps, parts
        self.names = tuple(name for step in steps for name in step.names)
        self.layers = tuple(layer for step in steps for layer in step.layers)
        self._known: list = []  # (layer, the arrays of its weight and bias)
        self._made: dict = {}  # what x is like -> what computes it

    def __getstate__(self):
        """A copy has arrays of its own: its programs are to be made for those."""
        return vars(self) | {"_known": [], "_made": {}}

    def pair(self, kind):
        """None: it is no pair of functions; `rows` tells what it computes."""

    def parameters(self):
        """Those of the steps."""
        return (found for step in self.steps for found in step.parameters())

    def forget(self):
        """It keeps nothing."""

    def rows(self):
        """(dotted names, layers, function, version) of each operation."""
        for part in self.parts:
            names = [name for step in part.steps if not hasattr(step, "place") for name in step.names]
            layers = " + ".join(layer.name for step in part.steps for layer in step.layers)
            yield names, layers, f"program: {part.kind}", "compiled"

    def forward(self, x):
        """Compute y, as the steps would."""
        compute = self._for(x)
        if compute is None:
            for step in self.steps:
                x = step.forward(x)
            return x
        y = compute(x)
        return y[:, :, 0, 0] if self.parts[-1].flat else y

    def backward(self, dy):
        """That of the steps: the last one says that nothing was saved."""
        for step in reversed(self.steps):
            dy = step.backward(dy)
        return dy

    def _for(self, x):
        """What computes such an x; None where the steps are to."""
        if type(x) is not np.ndarray or x.ndim != 4 or not x.size:
            return None
        if len(self._made) > MOST or any(_changed(*known) for known in self._known):
            self._made.clear()
        key = x.shape[1:], x.dtype
        if key not in self._made:
            if not self._made:
                layers = [layer for part in self.parts for layer in (part.main, part.taps) if layer]
                self._known = [(layer, layer.weight.data, layer.bias.data if layer.bias else None) for layer in layers]
                for layer in self.layers:
                    layer.drop_cache()
            self._made[key] = _sized(self.parts, *key)
        return self._made.get(key)


def _changed(layer, weight, bias):
    return layer.weight.data is not weight or (layer.bias.data if layer.bias else None) is not bias


def _sized(parts, sizes, dtype):
    """What computes the parts for pictures of these sizes (C, H, W); None where a layer would refuse them."""
    from scratchnet.kernels.compiled import walk
    from scratchnet.kernels.compiled.lowering import Operation
    from scratchnet.kernels.compiled.program import Inference

    values, operations = [sizes], []
    for part in parts:
        seen = channels, height, width = sizes = values[part.x]
        options: dict = {}
        if part.main:
            weight, bias = _numbers(part.main, dtype)
            if weight is None or weight[0].size != channels * np.prod(weight.shape[2:], dtype=int):
                return None
            options = {"weight": weight.reshape(len(weight), -1), "bias": bias, "clip": part.clip}
            sizes = len(weight), height, width
        if part.kind == "dense":
            options["window"] = part.main.window
            sizes = len(weight), *map(output_size, (height, width), *part.main.window)
        elif part.taps:
            weight, bias = _numbers(part.taps, dtype)
            if weight is None or len(weight) != sizes[0]:
                return None
            stride = part.taps.stride[0]
            options["taps"] = weight, bias, part.clip_taps, stride
            sizes = sizes[0], *((size - 1) // stride + 1 for size in sizes[1:])
        elif not part.main:
            sizes = channels if part.kind == "mean" else channels * height * width, 1, 1
        if min(sizes) < 1 or part.more is not None and values[part.more] != sizes:
            return None
        operations.append(Operation(getattr(walk, part.kind.upper()), part.x, part.more, (seen, sizes), **options))
        values.append(sizes)
    return Inference(operations)


def _numbers(layer, dtype):
    """Weight and bias as a program reads them; (None, None) where they do not lie so."""
    weight = layer.weight.data
    bias = layer.bias.data if layer.bias else np.zeros(len(weight), dtype)
    fit = all(
        type(array) is np.ndarray and array.dtype == dtype and array.flags.c_contiguous for array in (weight, bias)
    )
    return (weight, bias) if fit else (None, None)
