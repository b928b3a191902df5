"""Containers with branches: x goes through each of them, and the results are added, concatenated or multiplied.

In a chain the branches stand one behind the other between marks (layers/join.py has the mathematics, steps.py the way
through), so that a plan fuses neighbours in a branch as anywhere else. With them networks are written from parts:

    ResNet block              Residual(conv, norm, relu, conv, norm, shortcut=Sequential(conv, norm), after=relu)
    Inception block           Concat(a, b, c)
    U-Net                     Concat(Identity(), Sequential(down, inner, up))
    squeeze and excitation    Multiply(Identity(), Sequential(pool, conv, relu, conv, sigmoid))
"""

from itertools import combinations
from typing import Any

from scratchnet.device import name_of
from scratchnet.layers.join import CONCAT, MULTIPLY, SUM, Mark
from scratchnet.sequential import Sequential


class Branches(Sequential):
    """What the containers share: `Add(a, b)` names the branches 0, 1; `Add({"left": a, …})` as you say.

    Each layer is a branch, and one without layers, as an empty `Sequential`, gives x itself. A subclass may say by
    `branches` which of its layers are which branch, so that names, and with them the keys of a state, are free.

    Attributes:
        joined_by: the `kernels.Pair` that joins: forward(*ys) -> (y, cache), backward(dy, cache) -> a gradient for each.
        rule: what shapes have to be like, for messages.

    Raises:
        ValueError: there is no branch; what they give does not fit together (at forward).
    """

    joined_by: Any
    rule = ""

    def __getitem__(self, index):
        if isinstance(index, slice):
            raise TypeError(f"{self.name}: branches have no slice, since they are no chain: take them one by one")
        return super().__getitem__(index)

    def branches(self) -> list[list[str]]:
        """The names of each branch's layers."""
        return [[name] for name, _ in self.named_children()]

    def behind(self) -> list[str]:
        """The names of layers behind the join."""
        return []

    def inside(self, prefix=""):
        """The branches' chains, one behind the other, with a mark before, between and behind them."""
        children, branches = dict(self.named_children()), self.branches()
        if not branches:
            raise ValueError(f"{self.name}: expected at least one branch")

        def chain_of(names):
            for name in filter(children.__contains__, names):  # folding takes batch norms away
                yield from children[name].chain(f"{prefix}.{name}" if prefix else name)

        chains = [list(chain_of(names)) for names in branches]
        walked = [k for k, chain in enumerate(chains) if chain] or [len(chains) - 1]
        yield prefix, Mark(self, "open", None, len(chains))
        for k in walked:
            yield from chains[k]
            yield prefix, Mark(self, "close" if k == walked[-1] else "turn", k, len(chains))
        yield from chain_of(self.behind())

    def join(self, ys):
        """Y of what the branches gave; what `split` needs is saved."""
        self.require_fit([(y.shape, y.dtype) for y in ys])
        y, cache = self.joined_by.forward(*ys)
        self.save_cache(cache, y)
        return y

    def split(self, dy):
        """The gradient of what each branch gave."""
        return self.joined_by.backward(dy, self.take_cache(dy))

    def require_fit(self, forms):
        """Raise ValueError unless arrays of these (shape, dtype), one for each branch, can be joined."""
        for (j, a), (k, b) in combinations(enumerate(forms), 2):
            for what, fit, one, other, rule in (
                ("shape", self.shapes_fit, a[0], b[0], self.rule),
                ("dtype", self.dtypes_fit, a[1], b[1], "they need equal dtypes"),
            ):
                if not fit(one, other):
                    said = f"{self.branch_title(k)} gives {what} {other}, {self.branch_title(j)} {one}"
                    raise ValueError(f"{self.name}: {said}: {rule}")

    def shapes_fit(self, one, other):
        """Whether results of these shapes can be joined."""
        return one == other

    def dtypes_fit(self, one, other):
        """Whether results of these dtypes can be joined."""
        return one == other

    def branch_title(self, k):
        """What a message calls a branch."""
        names = self.branches()[k]
        return f"branch {names[0]}" if len(names) == 1 else f"branch {k}"


class Add(Branches):
    """The sum of what its branches give, all of one shape (SUM.1)."""

    joined_by = SUM
    rule = "a sum needs equal shapes"


class Concat(Branches):
    """What its branches give, channels behind channels: (N, Cₖ, H, W) or (N, Fₖ), all else equal (CAT.1)."""

    joined_by = CONCAT
    rule = "channels go behind channels where all other sizes are equal"

    def shapes_fit(self, one, other):  # noqa: D102
        return len(one) == len(other) and one[:1] + one[2:] == other[:1] + other[2:]


class Multiply(Branches):
    """The product of what its branches give; a size of 1, but for the pictures, is repeated (MUL.1).

    So a branch that gives (N, C, 1, 1) scales the channels of one that gives (N, C, H, W): squeeze and excitation.
    """

    joined_by = MULTIPLY
    rule = "a product needs equal sizes, or 1 (not for the pictures)"

    def shapes_fit(self, one, other):  # noqa: D102
        sizes = zip(one[1:], other[1:], strict=False)
        return len(one) == len(other) and one[0] == other[0] and all(a == b or 1 in (a, b) for a, b in sizes)

    def dtypes_fit(self, one, other):  # noqa: D102
        return one == other or {name_of(one), name_of(other)} == {"bfloat16", "float32"}


class Residual(Add):
    """A shortcut around its layers: y = x + f(x) (He et al. 2016, eq. 1), so dx = dy + Jᵀ dy.

    Args:
        layers: as `Sequential` takes them; all but the next two are f.
        shortcut: a layer that x goes through on the way around them, or the name of one of the layers: y = s(x) + f(x).
        after: a layer behind the sum, or the name of one of the layers.

    Raises:
        ValueError: what is added has different shapes or dtypes (at forward); there is no layer of such a name.
    """

    def __init__(self, *layers, shortcut=None, after=None):
        one = len(layers) == 1 and isinstance(layers[0], dict)
        named = {str(name): layer for name, layer in (layers[0] if one else dict(enumerate(layers))).items()}
        self._shortcut = self._take("shortcut", shortcut, named)
        self._after = self._take("after", after, named)
        super().__init__(named)

    def _take(self, role, given, named):
        """The name of the layer that has a role; one that is given is put among the layers."""
        if isinstance(given, str):
            if given not in named:
                raise ValueError(f"{self.name}: {role}={given!r} is none of the layers {', '.join(named) or '(none)'}")
            return given
        if given is not None:
            if role in named:
                raise ValueError(f"{self.name}: {role} is given twice, as a layer of that name too")
            named[role] = given
            return role
        return None

    def __getitem__(self, index):
        return Sequential.__getitem__(self, index)

    def branches(self):  # noqa: D102
        apart = self._shortcut, self._after
        around = [self._shortcut] if self._shortcut else []
        return [around, [name for name, _ in self.named_children() if name not in apart]]

    def behind(self):  # noqa: D102
        return [self._after] if self._after else []

    def require_fit(self, forms):  # noqa: D102
        if not self._shortcut:
            for what, before, after in zip(("shape", "dtype"), *forms, strict=True):
                if before != after:
                    raise ValueError(
                        f"{self.name}: the layers turn x of {what} {before} into {after}, a shortcut needs equal {what}s"
                    )
        super().require_fit(forms)

    def branch_title(self, k):  # noqa: D102
        return ("the shortcut", "what the layers make")[k]

    def extra_repr(self):  # noqa: D102
        roles = ("shortcut", self._shortcut), ("after", self._after)
        return ", ".join(f"{role}={name!r}" for role, name in roles if name)
