"""Modules: things with a forward, a backward, and the parameters that training changes.

There is no autograd and no graph. A network is a chain y = fₙ(…f₂(f₁(x))), the chain rule says
dx = J₁ᵀ J₂ᵀ … Jₙᵀ dy, and reading that product from the right is the whole algorithm: call `backward` in the reverse
order of `forward` and hand each result on. No topological sort is needed, since a chain has only one order.

The contract of every layer:
    forward   saves what backward needs in a *one-shot* cache: one forward serves one backward.
    backward  takes dy = ∂loss/∂y, returns dx = ∂loss/∂x, and *adds* ∂loss/∂parameter to `parameter.grad`.
    Neither writes into an array that it did not allocate, and both keep the dtype (but for the global pooling, which
    makes float32 of bfloat16).
"""

import math
import os
from typing import NamedTuple

import numpy as np

from scratchnet import device, flat, kernels
from scratchnet.array import to_device
from scratchnet.cache import OneShotCache
from scratchnet.device import require_device
from scratchnet.parameter import Parameter as Parameter


class LoadedKeys(NamedTuple):
    """What `load_state_dict` left alone: keys that the state does not have, and keys that the module does not have."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module(OneShotCache):
    """Base class of all layers and networks; `scratchnet.gradcheck` has an example of a layer of your own.

    Attributes:
        training: True after `train()` (the default), False after `eval()`.
        saves: whether forward keeps a cache for backward.
        takes_bfloat16: whether x may be stored in bfloat16, on a GPU, with parameters in float32.
        buffers: names of the arrays that belong to the state but are not trained, such as running statistics.
    """

    training = True
    takes_bfloat16 = False
    buffers: tuple[str, ...] = ()

    def forward(self, x):
        """Compute y from x."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, dy):
        """Compute dx from dy, and add to the parameters' gradients."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def __call__(self, x):  # noqa: D102
        return self.forward(x)

    def pair(self, kind):
        """The `kernels.Pair` that computes this layer for arrays of a `device.Kind`; None where it has none."""

    def chain(self, prefix=""):
        """(dotted name, layer) for each layer in the order in which forward calls them; a module by itself is one layer.

        This is how plan, trace, guard and gradient check go through a network. A `Sequential` opens itself up here. Any
        other module, and a subclass that computes in a way of its own, stays one layer, since only its forward knows.
        """
        yield prefix, self

    def factors(self):
        """The weights that are multiplied with activations as matrices, which rounds them where those are in bfloat16."""
        return ()

    def work(self, inside, outside):
        """Multiplications, each with its addition, that forward makes of one picture.

        A layer whose every number of y takes as many says so by an attribute `multiply_adds`; others make none that count.

        Args:
            inside, outside: shapes of x and y, without the batch axis.
        """
        return getattr(self, "multiply_adds", 0) * math.prod(outside)

    def facts(self):
        """What a plan depends on, beside the layer itself: its modes, and which of its parameters are frozen."""
        return self.training, self.saves, *(parameter.requires_grad for parameter in self.parameters())

    def require(self, x, *shape):
        """Refuse an x that forward cannot take.

        Args:
            x: forward's argument.
            shape: the sizes that x must have; a string stands for any size. None given: any (N, C, …) will do.

        Raises:
            TypeError, ValueError: no array, not floating-point, another dtype or array module, another shape, empty.
        """
        wanted = f"({', '.join(map(str, shape or ('N', 'C', '…')))})"
        if not device.is_array(x):
            raise TypeError(f"{self.name}: expected a NumPy or CuPy array {wanted}, got {type(x).__name__}")
        if x.ndim != len(shape) if shape else x.ndim < 2:
            raise ValueError(f"{self.name}: expected x of shape {wanted}, got x of shape {x.shape}")
        if shape and isinstance(shape[1], int) and x.shape[1] != shape[1]:
            what = "input channels" if len(shape) == 4 else "input features"
            raise ValueError(f"{self.name}: expected {shape[1]} {what}, got x of shape {x.shape}")
        if x.size == 0:
            raise ValueError(f"{self.name}: x of shape {x.shape} is empty, expected at least one picture")
        if not (x.dtype.kind in "fc" or device.is_bfloat16(x) and self._has_bfloat16_kernels(x)):
            where = " without a kernel for it" if device.is_bfloat16(x) else ""
            raise TypeError(
                f"{self.name}: expected floating-point x, got {x.dtype}{where}: convert it with x.astype('float32')"
            )
        own = next((value for value in vars(self).values() if isinstance(value, Parameter)), None)
        if own is not None and (problem := device.same_kind(x, own.data)):
            raise TypeError(f"{self.name}: {problem}")

    def _has_bfloat16_kernels(self, x):
        return self.takes_bfloat16 and kernels.enabled() and device.device_of(x) == "cuda"

    # What the module holds -------------------------------------------------------------------------------------------

    def named_children(self):
        """(name, sub-module) pairs in the order of definition."""
        return [(name, value) for name, value in vars(self).items() if isinstance(value, Module)]

    def named_modules(self, prefix=""):
        """(dotted name, module) for this module ("" or the prefix) and everything below it."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self):
        """(dotted name, Parameter) pairs in the order of definition."""
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    yield f"{prefix}.{name}" if prefix else name, value

    def parameters(self):
        """Every Parameter, in the order of definition."""
        values = list(vars(self).values())
        found = [value for value in values if isinstance(value, Parameter)]
        for child in values:
            if isinstance(child, Module):
                found += child.parameters()
        return found

    def num_parameters(self, trained_only=False):
        """How many numbers all parameters have together, or those that are not frozen."""
        return sum(p.data.size for p in self.parameters() if p.requires_grad or not trained_only)

    def state_dict(self):
        """Dotted name -> array of every parameter and buffer, in PyTorch's order; the arrays themselves, not copies."""
        state: dict = {}
        for prefix, module in self.named_modules():
            dot = f"{prefix}." if prefix else ""
            state |= {f"{dot}{key}": value.data for key, value in vars(module).items() if isinstance(value, Parameter)}
            state |= {f"{dot}{key}": getattr(module, key) for key in module.buffers}
        return state

    def load_state_dict(self, state, strict=True):
        """Copy values into the parameters and buffers.

        Args:
            state: dotted name -> array, or anything that `numpy.asarray` takes (a CPU tensor of PyTorch's, say).
            strict: whether every key of this module must be there, and no other.

        Returns:
            The `LoadedKeys`: `missing_keys` and `unexpected_keys`, both empty where strict.

        Raises:
            ValueError, TypeError: strict and the keys differ; a shape differs; no numbers. Nothing was copied then.
        """
        if isinstance(state, (str, bytes, os.PathLike)):
            raise TypeError(
                f"{self.name}: expected a state (dotted name -> array), got the path {os.fspath(state)!r}: "
                "read the file first, as in load_state_dict(sn.load(path))"
            )
        own = self.state_dict()
        missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
        if strict and (missing or unexpected):
            raise ValueError(
                f"{self.name}: the state does not fit: {len(missing)} missing keys {missing[:3]}, "
                f"{len(unexpected)} unexpected keys {unexpected[:3]}"
            )
        values = {k: v if device.is_array(v) else np.asarray(v) for k, v in state.items() if k in own}
        for key, value in values.items():
            if value.shape != own[key].shape:
                raise ValueError(f"{self.name}: {key} has shape {own[key].shape}, the state has {value.shape}")
            if value.dtype.kind not in "biufc":
                raise TypeError(f"{self.name}: {key} must be numbers, the state has {value.dtype}")
        for key, value in values.items():
            own[key][...] = to_device(value, device.device_of(own[key]))
        return LoadedKeys(missing, unexpected)

    # Modes and conversions, each over the whole tree -----------------------------------------------------------------

    def train(self, mode=True):
        """Training mode: batch statistics, dropout on, forward saves for backward; `train(False)` is `eval()`."""
        return self._set_mode(training=bool(mode), saves=bool(mode))

    def eval(self, save=False):
        """Evaluation mode: running statistics, dropout off; with `save`, backward works in this mode too. Returns self."""
        return self._set_mode(training=False, saves=save)

    def _set_mode(self, **flags):
        for _, module in self.named_modules():
            vars(module).update(flags)
            module.drop_cache()
        return self

    def requires_grad_(self, requires_grad=True):
        """Freeze every parameter with False, and train them again with True. Returns self.

        For a frozen one no gradient is computed and its `.grad` stays as it is, and optimizers leave it alone. Where a
        network has others that are trained, backward ends at the lowest layer with one of those, and returns None
        (`Plan.backward`).
        Batch norm's running statistics are no parameters: `eval()` of the frozen part keeps them as well. (A layer of your
        own that adds to `.grad` by itself, not by `parameter.add_gradients`, does so for frozen ones too.)
        """
        for parameter in self.parameters():
            parameter.requires_grad = bool(requires_grad)
        return self

    def zero_grad(self):
        """Set every gradient to 0: this opens a training step, since backward only ever adds."""
        for grad in flat.gradients(self.parameters()):
            grad[...] = 0

    def astype(self, dtype):
        """Convert every parameter and floating-point buffer, in place. Returns self."""
        return self._convert(lambda value: value.astype(dtype) if value.dtype.kind in "fc" else value)

    def to(self, device):
        """Bring every parameter and buffer to `"cpu"` or `"cuda"`, in place. Returns self; raises DeviceError."""
        require_device(device)
        return self._convert(lambda value: to_device(value, device))

    def _convert(self, change):
        for _, module in self.named_modules():
            module.drop_cache()
            for name, value in list(vars(module).items()):
                if isinstance(value, Parameter):
                    value.data, value.grad, value.home = change(value.data), change(value.grad), None
                elif name in module.buffers:
                    setattr(module, name, change(value))
        return self

    def extra_repr(self):
        """What tells this layer from others of its class, as its constructor takes it."""
        return ""

    def __repr__(self):
        children = [f"  ({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        extra = self.extra_repr()
        inside = "\n".join(["", *[f"  {extra}"] * bool(extra), *children, ""]) if children else extra
        return f"{type(self).__name__}({inside})"


class Parameterless(Module):
    """A layer that its pair of functions is all of: `pair` says which.

    Attributes:
        shape: the sizes that x must have, as `require` takes them; () for any (N, C, …).
    """

    shape: tuple = ()

    def forward(self, x):
        """Compute y from x."""
        self.require(x, *self.shape)
        forward, backward, _ = self.pair(device.kind_of(x))
        y, cache = forward(x)
        self.save_cache((backward, cache), y)
        return y

    def backward(self, dy):
        """Return dx."""
        backward, cache = self.take_cache(dy)
        return backward(dy, cache)
