"""What many layers do to small arrays, put together: on a GPU it is one launch for all layers of a chain.

A gradient that is added to a parameter's, or a batch's mean that is taken into a running one, is arithmetic on a few
thousand numbers, and a launch takes longer than that. So while a plan walks through its steps (plan.py) on a GPU, the
library's own layers only say what is to be done, and it is done at the end of the walk; and weights that bfloat16 has
rounded are rounded before the first step. After `model(x)` and after `model.backward(dy)` everything is as if each layer
had done it at once. A layer by itself does so, and so does one of someone else's, which may look at its gradients at once.
"""

from contextlib import contextmanager
from contextvars import ContextVar

from scratchnet import kernels
from scratchnet.device import kind_of
from scratchnet.kernels.cuda import many

_put_off: ContextVar[dict | None] = ContextVar("put_off", default=None)  # (pair, kind) -> rows; None: nothing is


def do(pair, rows):
    """Call the pair's function with rows, each a tuple that begins with the array to change; now, or when a walk ends."""
    kind, put_off = kind_of(rows[0][0]), _put_off.get()
    if kind.device == "cpu":
        pair.forward(rows)  # to choose takes longer than most of it
    elif put_off is None:
        kernels.choose(pair, kind).forward(rows)
    else:
        put_off.setdefault((pair, kind), []).extend(rows)


@contextmanager
def walking(kind, rounded):
    """While a plan walks: put off what `do` is given, and do it at the end.

    Args:
        kind: of the arrays, a `device.Kind`, or None where it is not known.
        rounded: what `rounded` gave before the walk forward.
    """
    if kind is None or kind.device == "cpu":
        yield
        return
    token = _put_off.set({})
    try:
        with many.knowing(rounded):
            yield
        put_off = _put_off.get() or {}
    finally:
        _put_off.reset(token)
    for (pair, kind_), rows in put_off.items():
        kernels.choose(pair, kind_).forward(rows)


def rounded(kind, layers):
    """The layers' weights that are multiplied with activations, rounded to bfloat16; none for arrays of another kind."""
    if kind is None or kind != ("cuda", "bfloat16"):
        return {}
    return many.narrow_all([weight for layer in layers for weight in layer.factors()])


@contextmanager
def at_once():
    """Put nothing off, even on the way through a plan."""
    token = _put_off.set(None)
    try:
        yield
    finally:
        _put_off.reset(token)
