"""The same done to many small arrays on the GPU, in one launch (together.py): a table says which arrays they are."""

from contextlib import contextmanager
from contextvars import ContextVar

from scratchnet.device import bfloat16_dtype, get_array_module, kind_of, name_of
from scratchnet.kernels.cuda.launch import launch_rows

ALIGN = 64  # numbers, as in flat.py
_rounded: ContextVar[dict | None] = ContextVar("rounded", default=None)  # a weight's address -> it, and it in bfloat16


def add_to_all(rows):
    """One launch (parameter.py)."""
    for some in _distinct(rows):
        fits = [_side_by_side(total, term) for total, term in some]
        for (total, term), fit in zip(some, fits, strict=True):
            if not fit:
                total += term
        fitting = [(*row, row[0].size) for row, fit in zip(some, fits, strict=True) if fit]
        if fitting:
            launch_rows("add_to_all", fitting)


def track_all(rows):
    """One launch (layers/norm.py)."""
    for some in _distinct(rows):
        numbers = [(momentum, count / (count - 1), len(mean)) for *_, mean, _, momentum, count in some]
        launch_rows("track_all", [(*row[:5], *its) for row, its in zip(some, numbers, strict=True)])  # (BN.9), (BN.10)


def narrow_all(weights):
    """One launch: for each weight of float32, by its address, it and what it is rounded to.

    Others are left out: their layers say what is wrong with them.
    """
    weights = [w for w in weights if kind_of(w) == ("cuda", "float32") and w.flags.c_contiguous]
    if not weights:
        return {}
    places, end = [], 0
    for weight in weights:
        places.append(slice(end, end + weight.size))
        end += -(-weight.size // ALIGN) * ALIGN
    memory = get_array_module(weights[0]).empty(end, bfloat16_dtype())
    parts = [memory[place] for place in places]
    rows = [(part, weight, weight.size) for part, weight in zip(parts, weights, strict=True)]
    launch_rows("narrow_all", rows)
    return {weight.data.ptr: (weight, part) for weight, part in zip(weights, parts, strict=True)}


@contextmanager
def knowing(rounded):
    """Within it `in_bfloat16` finds what `narrow_all` gave."""
    token = _rounded.set(rounded)
    try:
        yield
    finally:
        _rounded.reset(token)


def in_bfloat16(weight):
    """A weight of float32, rounded already, or None."""
    found, rounded = (_rounded.get() or {}).get(weight.data.ptr, (None, None))
    same = found is not None and found.size == weight.size and weight.flags.c_contiguous
    return rounded.reshape(weight.shape) if same else None


def _side_by_side(total, term):
    """Whether number i of one belongs to number i of the other, in memory."""
    same = name_of(total.dtype) == name_of(term.dtype)
    return same and total.flags.c_contiguous and term.flags.c_contiguous


def _distinct(rows):
    """The rows, in groups in which no array is changed twice: rows of one launch are done in no order."""
    while rows:
        seen: set = set()
        now: list = []
        later: list = []
        for row in rows:
            place = row[0].data.ptr
            (later if place in seen else now).append(row)
            seen.add(place)
        yield now
        rows = later
