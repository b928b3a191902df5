"""The container of layers in a chain.

The chain rule for y = fₙ(…f₂(f₁(x))) is dx = J₁ᵀ J₂ᵀ … Jₙᵀ dy: backward calls the layers in the reverse order and hands
each result on. Where there are branches (branches.py) marks stand in the chain. In which steps the layers are called is a
`Plan`, made at the first forward and kept until something changes that it depends on.
"""

from scratchnet.device import is_array, kind_of
from scratchnet.fused.inference import fold_batch_norm
from scratchnet.kernels import enabled
from scratchnet.module import Module
from scratchnet.plan import Plan, refuse_twice, signature


class Sequential(Module):
    """Layers one after another: `Sequential(a, b)` names them 0, 1; `Sequential({"stem": a, …})` as you say.

    Raises:
        TypeError: something is not a Module.
        ValueError: a name has a dot, or is taken by an attribute that every module has; a layer stands in two places.
    """

    _plan: Plan | None = None
    _signature: tuple | None = None
    _held: list = []  # (module, what it held) for all modules in it when the plan was last found to hold
    _frozen: list = []  # (parameter, whether a gradient was wanted for it) then

    def __init__(self, *layers):
        named = layers[0] if len(layers) == 1 and isinstance(layers[0], dict) else dict(enumerate(layers))
        for name, layer in named.items():
            if not isinstance(layer, Module):
                raise TypeError(f"{self.name}: expected {name} to be a Module, got {type(layer).__name__}")
            if hasattr(self, str(name)):
                raise ValueError(
                    f"{self.name}: {name!r} cannot name a layer, every module has an attribute of that name"
                )
            if "." in str(name):
                raise ValueError(
                    f"{self.name}: {name!r} cannot name a layer, a dot leads from a layer to one inside it"
                )
            setattr(self, str(name), layer)
        refuse_twice(self.inside())

    def __getitem__(self, index):
        children = self.named_children()[index]
        return Sequential(dict(children)) if isinstance(index, slice) else children[1]

    def __len__(self):
        return len(self.named_children())

    def chain(self, prefix=""):
        """The layers' chains, one behind the other; a subclass with its own forward or backward is one layer."""
        plain = type(self).forward is Sequential.forward and type(self).backward is Sequential.backward
        yield from self.inside(prefix) if plain else super().chain(prefix)

    def inside(self, prefix=""):
        """The chains of the layers in it, whatever a subclass does with them."""
        for name, child in self.named_children():
            yield from child.chain(f"{prefix}.{name}" if prefix else name)

    def drop_cache(self):
        """Forget the plan, and with it what its steps saved."""
        super().drop_cache()
        self._plan = self._signature = None
        self._held, self._frozen = [], []

    def forward(self, x):
        """Call every layer in order, fused neighbours as one."""
        kind = kind_of(x) if is_array(x) else None
        if self._plan is None or not self._holds(kind):
            chain = list(self.inside())
            found = signature(chain, kind)
            if self._plan is None or found != self._signature:
                self._plan, self._signature = Plan(chain, found[0], fuse=found[1]), found
            self._remember()
        return self._plan.forward(x)

    def _holds(self, kind):
        """Whether the plan surely does, since every module holds what it did: `signature` takes ten times as long."""
        if not self._held or (self._signature or ())[:2] != (kind, enabled()):
            return False
        try:
            held = all(vars(module) == held for module, held in self._held)
            return held and all(parameter.requires_grad is wanted for parameter, wanted in self._frozen)
        except ValueError:  # there is another array, and arrays are compared number by number
            return False

    def _remember(self):
        modules = [module for _, module in self.named_modules()]
        self._held = held = []
        kept = any(module._cache is not None for module in modules)  # here it would be kept from being freed
        if not kept and all(_is_ours(type(module)) for module in modules):
            held += [(module, vars(module).copy()) for module in modules]
            self._frozen = [(parameter, parameter.requires_grad) for parameter in self.parameters()]

    def backward(self, dy):
        """Apply the chain rule, from the last layer to the first, through the steps that forward took.

        Returns dx; None where some parameters are frozen and others are not, since nothing below them is computed then.
        """
        return (self._plan or Plan(self.inside(), None, fuse=False)).backward(dy)

    def fold_batch_norm(self):
        """`sn.fold_batch_norm(self)`: a copy for inference."""
        return fold_batch_norm(self)


def _is_ours(kind):
    """Whether what its plan depends on is what its modules hold: a class of someone else's may find it elsewhere."""
    methods = [getattr(kind, name, None) for name in ("facts", "chain", "inside", "branches", "behind")]
    return all(method is None or method.__module__.startswith("scratchnet.") for method in methods)
