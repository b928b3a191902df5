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

import copy

import numpy as np

from scratchnet import array, flat, kernels
from scratchnet.parameter import Parameter as Parameter


class Module:
    """Base class of all layers and networks; `scratchnet.gradcheck` has an example of a layer of your own.

    Attributes:
        training: True after `train()` (the default), False after `eval()`.
        saves: whether forward keeps a cache for backward.
        channelwise: row c of y needs row c of x only, so that `slabs` may compute some rows at a time.
        takes_bfloat16: whether x may be stored in bfloat16, on a GPU, with parameters in float32.
        buffers: names of the arrays that belong to the state but are not trained, such as running statistics.
    """

    training = True
    saves = True
    channelwise = False
    takes_bfloat16 = False
    buffers: tuple[str, ...] = ()
    _cache = None

    def forward(self, x):
        """Compute y from x."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, dy):
        """Compute dx from dy, and add to the parameters' gradients."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def __call__(self, x):  # noqa: D102
        return self.forward(x)

    def save_cache(self, cache, y):
        """Keep what backward needs, unless in eval mode; y says which dy will fit."""
        self._cache = (cache, y.shape, y.dtype) if self.saves else None

    def take_cache(self, dy=None):
        """What forward saved, once; dy is checked against the y that forward returned (None: a scalar, nothing to check).

        Raises:
            RuntimeError: no forward that saves came since the last backward.
            ValueError, TypeError: dy is not of the shape or dtype of the y that forward returned.
        """
        if self._cache is None:
            why = (
                "the last forward ran in eval mode, which saves nothing" if not self.saves else "no forward came before"
            )
            raise RuntimeError(
                f"{self.name}: nothing saved for backward ({why}): each forward in training mode, or after "
                "eval(save=True), serves one backward"
            )
        cache, shape, dtype = self._cache
        if dy is not None:
            self.require_gradient(dy, shape, dtype)
        self._cache = None
        return cache

    def drop_cache(self):
        """Forget what forward saved, since it no longer fits the mode, dtype or device."""
        self._cache = None

    def require_gradient(self, dy, shape, dtype):
        """Refuse a dy that is not of the shape and dtype of y; raises ValueError or TypeError."""
        if not array.is_array(dy):
            raise TypeError(f"{self.name}: expected dy to be an array of shape {shape}, got {type(dy).__name__}")
        if dy.shape != shape:
            raise ValueError(f"{self.name}: expected dy of shape {shape}, as forward returned, got {dy.shape}")
        if dy.dtype != dtype:
            raise TypeError(f"{self.name}: expected dy of dtype {dtype}, as forward returned, got {dy.dtype}")

    def require(self, x, *shape):
        """Refuse an x that forward cannot take.

        Args:
            x: forward's argument.
            shape: the sizes that x must have; a string stands for any size. None given: any (N, C, …) will do.

        Raises:
            TypeError, ValueError: no array, not floating-point, another dtype or array module, another shape, empty.
        """
        wanted = f"({', '.join(map(str, shape or ('N', 'C', '…')))})"
        if not array.is_array(x):
            raise TypeError(f"{self.name}: expected a NumPy or CuPy array {wanted}, got {type(x).__name__}")
        if x.ndim != len(shape) if shape else x.ndim < 2:
            raise ValueError(f"{self.name}: expected x of shape {wanted}, got x of shape {x.shape}")
        if shape and isinstance(shape[1], int) and x.shape[1] != shape[1]:
            what = "input channels" if len(shape) == 4 else "input features"
            raise ValueError(f"{self.name}: expected {shape[1]} {what}, got x of shape {x.shape}")
        if x.size == 0:
            raise ValueError(f"{self.name}: x of shape {x.shape} is empty, expected at least one picture")
        if not (x.dtype.kind in "fc" or array.is_bfloat16(x) and self._has_bfloat16_kernels(x)):
            where = " without a kernel for it" if array.is_bfloat16(x) else ""
            raise TypeError(
                f"{self.name}: expected floating-point x, got {x.dtype}{where}: convert it with x.astype('float32')"
            )
        own = next((value for value in vars(self).values() if isinstance(value, Parameter)), None)
        if own is not None and (problem := array.same_kind(x, own.data)):
            raise TypeError(f"{self.name}: {problem}")

    def _has_bfloat16_kernels(self, x):
        return self.takes_bfloat16 and kernels.enabled() and array.device_of(x) == "cuda"

    @property
    def name(self):
        """The class name, which opens every message; containers put the dotted path before it."""
        return type(self).__name__

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
        return [parameter for _, parameter in self.named_parameters()]

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

        Raises:
            ValueError, TypeError: strict and the keys differ; a shape differs; no numbers. Nothing was copied then.
        """
        own = self.state_dict()
        missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
        if strict and (missing or unexpected):
            raise ValueError(
                f"{self.name}: the state does not fit: {len(missing)} missing keys {missing[:3]}, "
                f"{len(unexpected)} unexpected keys {unexpected[:3]}"
            )
        values = {k: v if array.is_array(v) else np.asarray(v) for k, v in state.items() if k in own}
        for key, value in values.items():
            if value.shape != own[key].shape:
                raise ValueError(f"{self.name}: {key} has shape {own[key].shape}, the state has {value.shape}")
            if value.dtype.kind not in "biufc":
                raise TypeError(f"{self.name}: {key} must be numbers, the state has {value.dtype}")
        for key, value in values.items():
            own[key][...] = array.to_device(value, array.device_of(own[key]))

    # Modes and conversions, each over the whole tree -----------------------------------------------------------------

    def train(self):
        """Training mode: batch statistics, dropout on, forward saves for backward. Returns self."""
        return self._set_mode(training=True, saves=True)

    def eval(self, save=False):
        """Evaluation mode: running statistics, dropout off; with `save`, backward works in this mode too. Returns self."""
        return self._set_mode(training=False, saves=save)

    def _set_mode(self, **flags):
        for _, module in self.named_modules():
            vars(module).update(flags)
            module.drop_cache()
        return self

    def fold_batch_norm(self):
        """A copy for inference, with batch norm folded into the convolutions (`layers.folding`)."""
        from scratchnet.layers.folding import fold_batch_norm  # here: layers are made of modules

        return fold_batch_norm(self)

    def zero_grad(self):
        """Set every gradient to 0: this opens a training step, since backward only ever adds."""
        for grad in flat.gradients(self.parameters()):
            grad[...] = 0

    def astype(self, dtype):
        """Convert every parameter and floating-point buffer, in place. Returns self."""
        return self._convert(lambda value: value.astype(dtype) if value.dtype.kind in "fc" else value)

    def to(self, device):
        """Bring every parameter and buffer to `"cpu"` or `"cuda"`, in place. Returns self; raises DeviceError."""
        array.require_device(device)
        return self._convert(lambda value: array.to_device(value, device))

    def _convert(self, change):
        for _, module in self.named_modules():
            module.drop_cache()
            for name, value in list(vars(module).items()):
                if isinstance(value, Parameter):
                    value.data, value.grad, value.home = change(value.data), change(value.grad), None
                elif name in module.buffers:
                    setattr(module, name, change(value))
        return self

    def slab(self, rows):
        """The same layer over the channels `rows` (a slice): over views of all that it holds.

        A counter (0-d buffer) counts a step once, not once a slab: only the first slab shares it.
        """
        part = copy.copy(self)
        part._cache = None
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                setattr(part, name, value.rows(rows))
            elif name in self.buffers:
                setattr(part, name, value[rows] if value.ndim else value if rows.start == 0 else value.copy())
        return part
