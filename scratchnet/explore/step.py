"""One training step, taken so that nothing of it is lost: what each layer got and gave, forward and backward.

It is the step of `training/step.py` (forward, loss, backward, update) on a copy of the network, layer by layer and by the
functions in the layers' own files: so what is seen was computed by the very lines that are shown beside it. The update is
SGD without momentum or weight decay (SGD.4), in which a weight moves by lr times its gradient and by nothing else.
"""

import copy
from typing import Any, NamedTuple

import numpy as np

from scratchnet.kernels import use_kernels
from scratchnet.layers.loss import CrossEntropyLoss, log_softmax
from scratchnet.plan import plan
from scratchnet.steps import LayerStep, MarkStep
from scratchnet.training.optim import SGD

PLACES = {"open": "branches begin", "turn": "next branch", "close": "branches join"}


class Layer(NamedTuple):
    """A step of the chain: a layer, or where branches begin, turn and end. Arrays are numbers in `Taken.arrays`.

    name: dotted path.  step: of the plan.  x, y: what it got and gave.  dy, dx: what came back to it and what it handed on.
    """

    name: str
    step: Any
    x: int
    y: int
    dy: int
    dx: int

    @property
    def layer(self):
        """The module; of a mark the container."""
        return self.step.layers[0]

    @property
    def kind(self):
        """What it is, in words."""
        return f"{self.layer.name}: {PLACES[self.step.place]}" if isinstance(self.step, MarkStep) else self.layer.name

    @property
    def is_layer(self):
        """Whether it is a layer that computes by itself, no mark."""
        return type(self.step) is LayerStep


class Change(NamedTuple):
    """A parameter: its values before the step, its gradient, and its values after."""

    before: np.ndarray
    gradient: np.ndarray
    after: np.ndarray


class Taken(NamedTuple):
    """A training step that was taken.

    layers: in the order of forward.  arrays: activations and gradients, (N, C, H, W) or (N, F).  dlogits: where among them.
    loss, after: of the batch, before and after the update.  logits, logits_after: (N, K), or the maps that came out.
    losses, losses_after: of each picture alone.  changes: dotted name -> `Change`.
    """

    layers: list[Layer]
    arrays: list[np.ndarray]
    dlogits: int
    loss: float
    after: float
    logits: np.ndarray
    logits_after: np.ndarray
    losses: list[float]
    losses_after: list[float]
    changes: dict[str, Change]


class _Arrays(list):
    """Arrays, each once: a layer's y is the next one's x."""

    def number(self, array):
        """Where it stands; it is put behind the others if it is new."""
        for k in range(len(self) - 1, -1, -1):
            if self[k] is array:
                return k
        self.append(array)
        return len(self) - 1


def take_step(model, criterion, x, target, lr) -> Taken:
    """Take a training step with a copy of the network, and another forward behind it.

    Args:
        model: the network; it, its gradients and its generators stay as they are.
        criterion: a loss, called as `criterion(logits, target)`.
        x, target: a batch, (N, C, H, W) and (N,) or (N, C, H, W).
        lr: learning rate.

    Raises:
        FloatingPointError: a number is not finite; the message says where that begins.
    """
    arrays = _Arrays()
    with use_kernels(False), np.errstate(all="ignore"):
        twin, again = copy.deepcopy(model).train(), copy.deepcopy(model).train()  # the same masks of dropout in both
        steps = plan(twin, fuse=False).steps
        seen: list[tuple[int, int]] = []
        back: list[tuple[int, int]] = []
        y = x
        for step in steps:
            before, y = y, step.forward(y)
            require_finite(y, f"what {step.names[0] or 'the network'} gives")
            seen.append((arrays.number(before), arrays.number(y)))
        logits = y
        loss = float(criterion(logits, target))
        dy = criterion.backward()
        twin.zero_grad()
        dlogits = arrays.number(dy)
        for step in reversed(steps):
            came, dy = dy, step.backward(dy)
            require_finite(dy, f"the gradient that comes out of {step.names[0] or 'the network'}")
            back.append((arrays.number(came), arrays.number(dy)))
        before = {name: parameter.data.copy() for name, parameter in twin.named_parameters()}
        SGD(twin.parameters(), lr).step()
        changes = {name: Change(before[name], p.grad, p.data) for name, p in twin.named_parameters()}
        for name, parameter in again.named_parameters():
            parameter.data[...] = changes[name].after
        logits_after = again(x)
        after = float(criterion(logits_after, target))
        losses = [
            [float(criterion(z[k : k + 1], target[k : k + 1])) for k in range(len(z))] for z in (logits, logits_after)
        ]
    require_finite(np.array([loss, after]), f"the loss, before or after an update with lr {lr:g},")
    rows = zip(steps, seen, reversed(back), strict=True)
    layers = [Layer(step.names[0], step, *forward, *backward) for step, forward, backward in rows]
    return Taken(layers, list(arrays), dlogits, loss, after, logits, logits_after, losses[0], losses[1], changes)


def require_finite(array, what):
    """Raise FloatingPointError unless every number is finite."""
    if not np.isfinite(array).all():
        raise FloatingPointError(f"{what} is not finite: the network has diverged, or the learning rate is too large")


def probabilities(logits):
    """Softmax of (N, K) logits, in float64."""
    return np.exp(log_softmax(logits.T.astype(np.float64))).T


def is_classifier(criterion):
    """Whether the loss is of classes."""
    return isinstance(criterion, CrossEntropyLoss)
