"""Pickles read without executing them: a stack machine of our own that knows few opcodes and no importable name.

Python's `pickle.load` imports whatever module the file names and calls what it finds there, which is how a file runs
programs. Here a name is looked up in a table that the caller gives (`Allowed`): what stands there is a function of ours,
which checks its arguments, or a mark. Anything else, an opcode, a name, a call, is refused. The result consists of plain
values (dicts, lists, tuples, texts, bytes, numbers) and of what the table's functions have made.

What a file can cost is bounded: an opcode takes at most a few hundred bytes (an empty dict), and there are at most
`MAX_STEPS`; bytes and texts come out of the file itself, and what calls make of them is charged against `Allowed.room`
times its length. Keys of dicts are texts, bytes and numbers, as the hash of a deeply nested tuple overflows C's stack.
A list may hold itself or stand in many places: whoever reads the result checks the types that it goes through.

Opcodes are those of protocols 2 to 5 that Python 2 and 3 write for such values; texts of Python 2 come as bytes.
"""

import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from scratchnet.data.files import DataError

MAX_STEPS = 2_000_000  # opcodes; CIFAR-100's longest file has a few hundred thousand


class Allowed(NamedTuple):
    """What a pickle may name, make and fill.

    names: "module name" -> what stands for it. A function may be called, with the arguments that the file has: it
        checks them itself, and raises ValueError or TypeError. Anything else is a value without a use but to be passed on.
    states: type -> function of an object of just that type and a state, which fills the object (opcode BUILD).
    persistent: what stands for an identifier outside the file (opcode BINPERSID); None refuses all.
    room: bytes that calls may make, as a multiple of the pickle's length.
    """

    names: Mapping[str, Any]
    states: Mapping[type, Callable[[Any, Any], None]] = {}
    persistent: Callable[[Any], Any] | None = None
    room: int = 4


class Refused(ValueError):
    """Something that is not allowed, in words, as against something that is broken; functions of a table raise it too."""


def unpickle(raw: bytes, what: str, allowed: Allowed) -> Any:
    """The value that a pickle describes, made of plain values and of what the table has.

    Args:
        raw: the pickle, all of it and nothing behind it.
        what: the file, in words: it opens the message.
        allowed: what it may name: `pickled_arrays.NUMPY`, or a table of your own.

    Raises:
        DataError: it is damaged, or has what is not allowed; nothing was executed.
    """
    try:
        return _Machine(raw, allowed).run()
    except Refused as error:
        raise DataError(f"{what} is a pickle with {error}; expected plain values and arrays of numbers alone") from None
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError, struct.error) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(f"{what} is no pickle, or a damaged one ({why}); expected an intact file") from None


class _Machine:
    """The stack of values, the stacks below its marks, and the values that the file has numbered to use again."""

    def __init__(self, raw, allowed):
        self.raw, self.at, self.allowed = memoryview(raw), 0, allowed
        self.room = allowed.room * len(raw) + (1 << 16)
        self.stack: list = []
        self.below: list[list] = []
        self.memo: dict[int, Any] = {}

    def run(self):
        for _ in range(MAX_STEPS):
            code = bytes(self.take(1))
            if code == pickle.STOP:
                (value,) = self.stack
                if self.below or self.at != len(self.raw):
                    raise ValueError("values or bytes are left over behind its end")
                return value
            if code not in OPCODES:
                raise Refused(f"the opcode {code!r}")
            OPCODES[code](self)
        raise Refused(f"more than {MAX_STEPS:,} opcodes")

    # The file, front to back ----------------------------------------------------------------------------------------

    def take(self, size):
        if size > len(self.raw) - self.at:
            raise ValueError(f"its end is missing: {size:,} bytes more, and {len(self.raw) - self.at:,} are there")
        self.at += size
        return self.raw[self.at - size : self.at]

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self):
        end = bytes(self.raw[self.at : self.at + 200]).index(b"\n")  # no name is longer
        return str(self.take(end + 1)[:-1], "utf-8")

    # What opcodes do ------------------------------------------------------------------------------------------------

    def push(self, value):
        self.stack.append(value)

    def mark(self):
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self):
        """The values above the last mark."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def push_last(self, count):
        """Make a tuple of the last values."""
        if len(self.stack) < count:
            raise ValueError("a tuple of more values than there are")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def extend(self, values):
        if type(self.stack[-1]) is not list:
            raise Refused(f"something to append to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(values)

    def update(self, values):
        """Put keys and values, in turn, into the dict below them."""
        if not isinstance(self.stack[-1], dict) or len(values) % 2:
            raise Refused(f"keys and values to put into a {type(self.stack[-1]).__name__}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, bytes, int):
                raise Refused(f"a {type(key).__name__} as the key of a dict")
            self.stack[-1][key] = value

    def put(self, index):
        self.memo[index] = self.stack[-1]

    def name(self, module, name):
        if type(module) is not str or type(name) is not str or f"{module} {name}" not in self.allowed.names:
            raise Refused(f"the name {f'{module}.{name}'[:80]!r}")
        self.push(self.allowed.names[f"{module} {name}"])

    def stack_name(self):
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def call(self):
        values, function = self.stack.pop(), self.stack.pop()
        known = any(function is one for one in self.allowed.names.values())
        if not (known and callable(function) and type(values) is tuple):
            raise Refused(f"a call of a {type(function).__name__}")
        self.push(self.charged(function(*values)))

    def build(self):
        state, thing = self.stack.pop(), self.stack[-1]
        if type(thing) not in self.allowed.states:
            raise Refused(f"a state for a {type(thing).__name__}")
        self.allowed.states[type(thing)](thing, state)
        self.charged(thing)

    def look_up(self):
        if self.allowed.persistent is None:
            raise Refused("an identifier of something outside the file")
        self.push(self.charged(self.allowed.persistent(self.stack.pop())))

    def charged(self, value):
        """The value, whose bytes must fit into the room that is left."""
        self.room -= value.nbytes if isinstance(value, np.ndarray) else len(value) if type(value) is bytes else 64
        if self.room < 0:
            raise Refused("calls that make much more of it than it holds")
        return value


OPCODES: dict[bytes, Callable[[_Machine], Any]] = {
    pickle.PROTO: lambda m: m.take(1),
    pickle.FRAME: lambda m: m.take(8),
    pickle.MARK: _Machine.mark,
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG1: lambda m: m.push(int.from_bytes(m.take(m.number("B")), "little", signed=True)),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.SHORT_BINSTRING: lambda m: m.push(bytes(m.take(m.number("B")))),
    pickle.BINSTRING: lambda m: m.push(bytes(m.take(m.number("<I")))),
    pickle.SHORT_BINBYTES: lambda m: m.push(bytes(m.take(m.number("B")))),
    pickle.BINBYTES: lambda m: m.push(bytes(m.take(m.number("<I")))),
    pickle.BINBYTES8: lambda m: m.push(bytes(m.take(m.number("<Q")))),
    pickle.BYTEARRAY8: lambda m: m.push(bytes(m.take(m.number("<Q")))),
    pickle.SHORT_BINUNICODE: lambda m: m.push(str(m.take(m.number("B")), "utf-8")),
    pickle.BINUNICODE: lambda m: m.push(str(m.take(m.number("<I")), "utf-8")),
    pickle.BINUNICODE8: lambda m: m.push(str(m.take(m.number("<Q")), "utf-8")),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.push_last(1),
    pickle.TUPLE2: lambda m: m.push_last(2),
    pickle.TUPLE3: lambda m: m.push_last(3),
    pickle.TUPLE: lambda m: m.push(tuple(m.pop_mark())),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.APPEND: lambda m: m.extend([m.stack.pop()]),
    pickle.APPENDS: lambda m: m.extend(m.pop_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.SETITEM: lambda m: m.update([m.stack.pop(-2), m.stack.pop()]),
    pickle.SETITEMS: lambda m: m.update(m.pop_mark()),
    pickle.BINPUT: lambda m: m.put(m.number("B")),
    pickle.LONG_BINPUT: lambda m: m.put(m.number("<I")),
    pickle.MEMOIZE: lambda m: m.put(len(m.memo)),
    pickle.BINGET: lambda m: m.push(m.memo[m.number("B")]),
    pickle.LONG_BINGET: lambda m: m.push(m.memo[m.number("<I")]),
    pickle.GLOBAL: lambda m: m.name(m.line(), m.line()),
    pickle.STACK_GLOBAL: _Machine.stack_name,
    pickle.REDUCE: _Machine.call,
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: _Machine.look_up,
}
