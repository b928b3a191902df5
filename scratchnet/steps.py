"""The steps of a plan that are no group of neighbours: a layer by itself, and where branches begin, turn and end.

Branches (layers/join.py) stand in a chain one behind the other, with marks between them. Forward hands x to the first;
where one ends, its result is kept and x comes back for the next; where the last ends, all results are joined. Backward
goes the same way in reverse: what is kept then is the gradient of each result, and what comes back to x is added.
"""

from contextlib import nullcontext
from typing import Any

from scratchnet import kernels, together
from scratchnet.cache import OneShotCache, located
from scratchnet.layers.join import SUM, add


def is_ours(layer):
    """Whether a layer is the library's: one of someone else's may change its weights, or look at its gradients."""
    return type(layer).__module__.startswith("scratchnet.")


class LayerStep:
    """A layer by itself."""

    def __init__(self, name, layer):
        self.names, self.layers = (name,), (layer,)
        self._way = nullcontext if is_ours(layer) else together.at_once

    def pair(self, kind):
        """The pair that computes the layer; None where it does not say."""
        return self.layers[0].pair(kind)

    def parameters(self):
        """(name, Parameter) pairs of the layer."""
        return self.layers[0].named_parameters()

    def forward(self, x):
        """The layer's own forward."""
        with located(self.names[0]), self._way():
            return self.layers[0].forward(x)

    def backward(self, dy):
        """The layer's own backward."""
        with located(self.names[0]), self._way():
            return self.layers[0].backward(dy)

    def forget(self):
        """Let go of what forward kept for a backward that does not come by."""
        OneShotCache.drop_cache(self.layers[0])  # a container's own would forget its plan as well


class MarkStep(LayerStep):
    """A `Mark` of a chain; its layer is the container.

    Attributes:
        place: "open", "turn" or "close".
        says: what a plan prints behind the container's class.
    """

    place = ""
    says = ""

    def __init__(self, name, mark):
        super().__init__(name, mark.container)
        self.branch, self.of = mark.branch, mark.of

    @property
    def title(self):
        """What a plan prints."""
        return self.layers[0].name + self.says

    def parameters(self):
        """None of its own."""
        return ()

    def pair(self, kind):
        """Nothing is computed."""


class Fork(MarkStep):
    """Where branches begin: x is handed to the first, and kept for the others.

    Attributes:
        walked: numbers of the branches that a step ends; the others are without layers.
    """

    place = "open"

    def __init__(self, name, mark):
        super().__init__(name, mark)
        self.walked: set = set()
        self._x: Any = None
        self._total: Any = None  # of the gradients that have come back
        self._kept: dict = {}  # branch -> its result, forward, or the gradient of that, backward

    def forward(self, x):
        """Keep x, and hand it on."""
        self._x, self._kept, self._total = x, {}, None
        return x

    def keep(self, branch, y):
        """Keep what a branch gave; returns x."""
        self._kept[branch] = y
        return self._x

    def results(self):
        """What each branch gave, once, in order; x where none is kept."""
        x, kept, self._x, self._kept = self._x, self._kept, None, {}
        return [kept.get(branch, x) for branch in range(self.of)]

    def hand_back(self, gradients, last):
        """Keep the gradient of each branch's result until backward gets there; returns that of the last."""
        self._kept = dict(enumerate(gradients))
        for branch in range(self.of):
            if branch not in self.walked:
                self._add(self._kept.pop(branch))
        return self._kept.pop(last)

    def turn_back(self, branch, dx):
        """Add what came back through the branch behind this one; returns this one's gradient."""
        self._add(dx)
        return self._kept.pop(branch)

    def backward(self, dx):
        """What came back through all branches, added (JOIN.1)."""
        self._add(dx)
        total, self._total = self._total, None
        return total

    def forget(self):
        """Let go of what backward has brought here from other branches."""
        self._x, self._kept, self._total = None, {}, None

    def _add(self, dx):
        self._total = dx if self._total is None else kernels.run(add, self._total, dx)


class Turn(MarkStep):
    """Where a branch ends and the next begins."""

    place = "turn"
    says = ", next branch"

    def __init__(self, name, mark, fork):
        super().__init__(name, mark)
        self.fork = fork
        fork.walked.add(mark.branch)

    def forward(self, y):
        """Keep y; returns x."""
        return self.fork.keep(self.branch, y)

    def backward(self, dx):
        """Add dx; returns what comes back to this branch."""
        return self.fork.turn_back(self.branch, dx)


class Join(Turn):
    """Where the last branch ends, and all results are joined."""

    place = "close"
    says = ""

    def __init__(self, name, mark, fork):
        super().__init__(name, mark, fork)
        self.adds_two = mark.adds_two

    def pair(self, kind):
        """The container's; of a sum what adds two arrays."""
        pair = self.layers[0].joined_by
        return kernels.choose(kernels.Pair(add) if pair is SUM else pair, kind)

    def forward(self, y):
        """Join what all branches gave."""
        self.fork.keep(self.branch, y)
        with located(self.names[0]):
            return self.layers[0].join(self.fork.results())

    def backward(self, dy):
        """Keep what comes back to the other branches; returns what comes back to this one."""
        with located(self.names[0]):
            gradients = self.layers[0].split(dy)
        return self.fork.hand_back(gradients, self.branch)
