"""The plan: which steps a chain of layers becomes. It says what will run before it runs, and is what runs.

A network is a chain of layers, with marks where branches begin and end (`Module.chain`, steps.py). Most of its time goes
into a few groups of neighbours that are computed faster together than one by one, each with a derivation of its own
(`fused/`). A plan replaces such neighbours by one step, chosen from the table FUSIONS, and leaves every other layer a step
by itself. Forward walks the steps in order, backward in reverse: that is the chain rule.

A frozen parameter needs no gradient, and what lies below the lowest parameter that needs one needs no dx. The steps stand
in an order in which each reads only what others before it made, branches too: so nothing below that step leads to a
parameter that is trained, and backward ends there.
"""

from scratchnet import device, kernels, together
from scratchnet.fused.block import BlockStep
from scratchnet.fused.dense import DenseStep
from scratchnet.fused.depthwise import DepthwiseStep
from scratchnet.fused.front import FrontStep
from scratchnet.fused.inference import FoldedStep
from scratchnet.fused.pointwise import PointwiseStep
from scratchnet.fused.program import ProgramStep, joined
from scratchnet.fused.project import ProjectStep
from scratchnet.layers.join import Mark
from scratchnet.parallel.threads import computing
from scratchnet.steps import Fork, Join, LayerStep, Turn, is_ours

# how many layers, and the step for them; the first that fits is taken
FUSIONS: tuple = (
    (9, BlockStep),
    (8, BlockStep),
    (6, FrontStep),
    (3, PointwiseStep),
    (3, DepthwiseStep),
    (3, DenseStep),
    (3, ProjectStep),
    (2, ProjectStep),
    (3, FoldedStep),
    (2, FoldedStep),
)


class Plan:
    """The steps of a chain, for the modes that its layers are in.

    Args:
        chain: (dotted name, layer) pairs, as `Module.chain` gives them.
        kind: of the arrays that will come, a `device.Kind`.
        fuse: whether neighbours may be joined; without, every layer is a step.

    Attributes:
        steps: things with `names`, `layers`, `parameters()`, `pair(kind)`, `forward(x)`, `backward(dy)` and `forget()`.
        lowest: the number of the step where backward ends, if some parameters are frozen and others are not; else None.

    Raises:
        ValueError: a layer stands in two places.
    """

    def __init__(self, chain, kind, fuse=True):
        self.kind = kind
        self._rounded: dict = {}  # from a forward to its backward
        self.steps: list = []
        chain = list(chain)
        forks: list[Fork] = []  # whose branches are open
        refuse_twice(chain)
        below = _below(chain)
        while chain:
            name, layer = chain[0]
            count, step = 1, None
            if isinstance(layer, Mark):
                step = _at_mark(name, layer, forks)
            elif fuse:
                count, step = _fused(chain, kind, below)
                if isinstance(chain[count - 1][1], Mark):  # branches end within the step
                    step.end_branches(forks.pop())
            self.steps.append(step or LayerStep(name, layer))
            chain, below = chain[count:], below - count
        if fuse:
            self.steps = joined(self.steps, kind)
        trained = [[parameter.requires_grad for _, parameter in step.parameters()] for step in self.steps]
        mixed = any(map(any, trained)) and not all(map(all, trained))
        self.lowest = next(k for k, some in enumerate(trained) if any(some)) if mixed else None

    def forward(self, x):
        """y of the whole chain."""
        # a generator: it is looked at for bfloat16 alone
        layers = (layer for step in self.steps for layer in step.layers if is_ours(layer))
        self._rounded = together.rounded(self.kind, layers)
        with computing(), together.walking(self.kind, self._rounded):
            for step in self.steps:
                x = step.forward(x)
        return x

    def backward(self, dy):
        """dx of the whole chain, from dy: the chain rule, from the last step to the first.

        Where some parameters are frozen and others are not, it ends at the lowest step with one of these, and returns None,
        unless a plan around this one needs dx (`wanting_dx`).

        Raises:
            TypeError: dy is None, which such a network above has returned.
        """
        if dy is None:
            raise TypeError(
                "backward got None for dy: the network above is frozen in part and handed no dx on; where your own code "
                "joins networks, call the backward of those above within sn.wanting_dx()"
            )
        rounded, self._rounded = self._rounded, {}
        with computing(), together.walking(self.kind, rounded):
            for step, wanted in self.backwards():
                with wanting_dx(wanted):
                    dy = step.backward(dy)
        if _wanted or self.lowest is None:
            return dy
        for step in self.steps[: self.lowest]:
            step.forget()
        return None

    def backwards(self):
        """[(step, whether networks inside it have to return dx)] for those that backward takes, in its order."""
        lowest = None if _wanted else self.lowest
        steps = self.steps[lowest:]
        return [(step, _wanted or k > 0 and lowest is not None) for k, step in enumerate(steps)][::-1]

    def __str__(self):
        return aligned(
            [
                ("layers", "kind", "function", "version"),
                *(row for step in self.steps for row in step_rows(step, self.kind)),
            ]
        )


def plan(model, fuse=True):
    """What `model` runs in the modes that its layers are in; `print` shows a line a step.

    Args:
        model: a `Module`. One that is no plain chain is a single step.
        fuse: whether neighbours may be joined, which they are where kernels are allowed.

    Returns:
        The `Plan`, for arrays of the device and dtype of the model's parameters.
    """
    first = next(iter(model.parameters()), None)
    kind = device.Kind("cpu", "float32") if first is None else device.kind_of(first.data)
    return Plan(model.chain(), kind, fuse and kernels.enabled())


def signature(chain, kind):
    """What a plan holds for: as long as this stays equal, the plan does."""
    facts = [(name, layer, () if isinstance(layer, Mark) else layer.facts()) for name, layer in chain]
    return kind, kernels.enabled(), facts


def refuse_twice(chain):
    """Raise ValueError where a layer stands in two places of a chain."""
    seen: dict = {}
    for name, layer in chain:
        layer = layer.container if isinstance(layer, Mark) else layer
        if (first := seen.setdefault(id(layer), name)) != name:
            raise ValueError(
                f"{name} is the same {layer.name} object as {first}, and one forward of a layer serves one backward: "
                "make two"
            )


def step_row(step, kind):
    """(dotted names, layers, function pair, version) of a step, as text."""
    pair = step.pair(kind)
    said = (pair.name, pair.version) if pair else ("", "")
    return joined_names(step.names), step_title(step), *said


def step_title(step):
    """What a step is: its layers, or what a group of many is called."""
    return getattr(step, "title", "") or " + ".join(layer.name for layer in step.layers)


def step_rows(step, kind):
    """`step_row`, or a row for each operation of a program."""
    if not isinstance(step, ProgramStep):
        return [step_row(step, kind)]
    return [(joined_names(names), *said) for names, *said in step.rows()]


def joined_names(names):
    """`features.2.conv.0.0`, `….1`, `….2` -> `features.2.conv.0.{0,1,2}`."""
    if len(names) == 1:
        return names[0]
    split = [name.split(".") for name in names]
    same = 0
    while len({tuple(name[: same + 1]) for name in split}) == 1:
        same += 1
    return ".".join([*split[0][:same], "{" + ",".join(".".join(name[same:]) for name in split) + "}"])


def _at_mark(name, mark, forks):
    """The step of a mark; forks are those whose branches are still open."""
    if mark.place == "open":
        forks.append(Fork(name, mark))
        return forks[-1]
    return Turn(name, mark, forks[-1]) if mark.place == "turn" else Join(name, mark, forks.pop())


_wanted = False


class wanting_dx:  # noqa: N801 (it is called like a function)
    """Within the block a network that is frozen in part goes back to its first layer, and returns dx.

    A network inside a layer with a backward of its own needs that, where something below it is trained. A plan says so to
    what is inside its steps; where your own code joins networks, it says so around the `backward` of those above.
    """

    def __init__(self, really=True):
        self._really = really

    def __enter__(self):
        global _wanted
        self._before, _wanted = _wanted, self._really

    def __exit__(self, *_):
        global _wanted
        _wanted = self._before


def _below(chain):
    """How many layers of a chain are below all that is trained; 0 where nothing is, since dx is wanted then."""
    layers = ((k, layer) for k, (_, layer) in enumerate(chain) if not isinstance(layer, Mark))
    return next((k for k, layer in layers if any(p.requires_grad for p in layer.parameters())), 0)


def _fused(chain, kind, below):
    """How many of the first layers are computed as one, and the step that does it; 1 and None where none are.

    No backward comes by the first `below` of them.
    """
    for count, fusion in FUSIONS:
        names, layers = zip(*chain[:count], strict=True)
        if len(layers) == count and fusion.matches(list(layers)):
            step = fusion(names, layers)
            if count > below and step.computes_what_is_frozen():
                continue
            if not step.needs_kernel or kind and step.pair(kind).version != "plain":
                return count, step
    return 1, None


def aligned(rows, numbers=0, gap="  "):
    """Rows of text as a table; the last `numbers` columns end at the same place, the others begin there."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = [str.ljust] * (len(widths) - numbers) + [str.rjust] * numbers
    cells = ((pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)) for row in rows)
    return "\n".join(gap.join(row).rstrip() for row in cells)


def ending(text, width):
    """The text, or as much of its end as goes into so many columns."""
    return text if len(text) <= width else "…" + text[len(text) - max(1, width) + 1 :]
