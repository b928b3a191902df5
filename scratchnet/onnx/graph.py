"""A network as a graph: layers whose inputs are named values, in an order in which each comes behind those that it reads.

A chain needs no graph, since it has one order (module.py). A file from elsewhere may hand a value to several layers, in no
pattern of branches. Forward then goes through the nodes in order. Backward goes through them in reverse, and where a value
was read more than once its gradients add, as they do in front of branches (layers/join.py).
"""

from typing import Any, NamedTuple

from scratchnet import kernels
from scratchnet.branches import Branches
from scratchnet.cache import located
from scratchnet.layers.join import add
from scratchnet.module import Module


class Node(NamedTuple):
    """A layer that reads values and makes one; with more than one input it is a container that joins, such as `Add()`."""

    name: str
    layer: Any
    inputs: tuple[str, ...]
    output: str


class Graph(Module):
    """Layers that read named values.

    Args:
        nodes: in an order in which every value is made before it is read.
        start, end: names of what goes in and of what comes out.

    Raises:
        ValueError: a node reads a value that no node before it made; the end is made by none.
    """

    def __init__(self, nodes, start, end):
        known = {start}
        for node in nodes:
            for value in node.inputs:
                if value not in known:
                    raise ValueError(f"Graph: {node.name} reads {value!r}, which nothing before it makes")
            known.add(node.output)
        if end not in known:
            raise ValueError(f"Graph: nothing makes {end!r}, which is to come out")
        read = {end}
        for node in reversed(nodes):  # what nobody reads is not computed
            if node.output in read:
                read |= set(node.inputs)
        self._nodes = [node for node in nodes if node.output in read]
        self._start, self._end = start, end
        for node in self._nodes:
            setattr(self, node.name, node.layer)

    def forward(self, x):
        """Compute y."""
        values, last = {self._start: x}, {value: k for k, node in enumerate(self._nodes) for value in node.inputs}
        for k, node in enumerate(self._nodes):
            given = [values[name] for name in node.inputs]
            for name in set(node.inputs) - {self._end}:
                if last[name] == k:
                    del values[name]  # nobody needs it any more, and a layer keeps what its backward wants
            with located(node.name):
                joins = isinstance(node.layer, Branches)
                values[node.output] = node.layer.join(given) if joins else node.layer(*given)
        return values[self._end]

    def backward(self, dy):
        """Return dx."""
        gradients = {self._end: dy}
        for node in reversed(self._nodes):
            dy = gradients.pop(node.output)
            with located(node.name):
                back = node.layer.split(dy) if isinstance(node.layer, Branches) else [node.layer.backward(dy)]
            for name, dx in zip(node.inputs, back, strict=True):
                gradients[name] = kernels.run(add, gradients[name], dx) if name in gradients else dx
        return gradients[self._start]
