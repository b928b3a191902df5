"""What is read from outside is of the right type and in range before it is used: a small schema for JSON.

A schema is a `Kind` for one value, a dict for an object that has at least these fields, a list for one of that length.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from scratchnet.training.archive import CheckpointError


class Kind(NamedTuple):
    """What one value must be, in words and as a test; the test never raises, whatever it gets."""

    words: str
    fits: Callable[[Any], bool]


def whole(low: int = 0, high: int = 2**53) -> Kind:
    """A whole number from `low` to `high`."""
    return Kind(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def number(low: float = -1e300, high: float = 1e300) -> Kind:
    """A number from `low` to `high`, neither infinite nor NaN."""
    return Kind(
        f"a number from {low:g} to {high:g}", lambda value: type(value) in (int, float) and low <= value <= high
    )


def one_of(*choices: Any) -> Kind:
    """One of these, of the same type."""
    words = " or ".join(map(repr, choices))
    return Kind(words, lambda value: any(type(value) is type(one) and value == one for one in choices))


TEXT = Kind("a line of text", lambda value: isinstance(value, str) and value.isprintable() and len(value) <= 500)
SHA256 = Kind("a SHA-256", lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))


def check(value: Any, schema: Any, what: str) -> None:
    """Refuse a value that is not as the schema says; `what` names it.

    Raises:
        CheckpointError: the field, what it is, and what would be right.
    """
    if isinstance(schema, Kind):
        if not schema.fits(value):
            raise CheckpointError(f"{what} is {_short(value)}, expected {schema.words}")
    elif isinstance(schema, dict):
        check(value, OBJECT, what)
        for key, inner in schema.items():
            if key not in value:
                raise CheckpointError(f"{what} has no {key!r}")
            check(value[key], inner, f"{key!r} in {what}")
    else:
        if not isinstance(value, list) or len(value) != len(schema):
            raise CheckpointError(f"{what} is {_short(value)}, expected a list of {len(schema)}")
        for k, inner in enumerate(schema):
            check(value[k], inner, f"[{k}] of {what}")


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a very large number"
    return text if len(text) <= 60 else text[:59] + "…"
