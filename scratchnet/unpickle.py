"""A pickle read as data: a machine for the part of pickle's language that builds values, and that executes nothing.

A pickle is a program for a stack machine. What makes it dangerous is three of its instructions: GLOBAL imports whatever
it names, REDUCE calls it, BUILD writes into whatever it has made. Here GLOBAL looks a name up in a table that the caller
gives, and nothing is ever imported; REDUCE calls nothing but the functions of that table; BUILD calls nothing but a
method `build` of what they have made. All other instructions make numbers, text, bytes, lists, tuples and dicts. An
instruction that is not in `_STEPS` is refused, so that the list of what a file can do stands in this file.

What a program makes is bounded by its length: an instruction pushes one value at most, and no value is copied. Keys of
dicts are text, bytes or integers of 64 bits, as others can be chosen so that a dict takes hours to fill.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any


class UnpickleError(ValueError):
    """The bytes are no pickle, end too early, or ask for something that is not allowed; one sentence."""


_MARK = object()


class _Machine:
    """The stack, the memo and the place in the program."""

    def __init__(self, data, at, table, persistent, encoding):
        self.data, self.at, self.table, self.persistent, self.encoding = data, at, table, persistent, encoding
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.callable = {id(value) for value in table.values() if callable(value)}

    # Reading --------------------------------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        """The next bytes of the program."""
        end = self.at + count
        if end > len(self.data):
            raise UnpickleError("it ends too early")
        piece, self.at = self.data[self.at : end], end
        return piece

    def number(self, layout: str) -> Any:
        """The next number, as `struct` unpacks it."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        """The next line, without its end."""
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise UnpickleError("it ends too early")
        return self.take(end + 1 - self.at)[:-1].decode("utf-8")

    # The stack ------------------------------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the value on top, which is no mark."""
        if not self.stack or self.stack[-1] is _MARK:
            raise UnpickleError("it takes a value that is not there")
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        """Take the values down to the last mark, and the mark."""
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                values = self.stack[at + 1 :]
                del self.stack[at:]
                return values
        raise UnpickleError("it takes a value that is not there")

    def top(self, kind: type) -> Any:
        """The value on top, which stays there and is a list or a dict."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise UnpickleError(f"it adds to something that is no {kind.__name__}")
        return self.stack[-1]

    # The instructions that need more than a line ----------------------------------------------------------------------

    def tuple_of(self, count: int) -> None:
        """Make a tuple of the values on top."""
        self.push(tuple([self.pop() for _ in range(count)][::-1]))

    def append(self, values: list[Any]) -> None:
        """Add to the list on top."""
        self.top(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        """Add keys and values in turn to the dict on top."""
        target = self.top(dict)
        if len(values) % 2:
            raise UnpickleError("it gives a dict a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not (type(key) in (str, bytes) or type(key) is int and -(2**63) <= key < 2**63):
                raise UnpickleError(f"a key of a dict is a {type(key).__name__}, expected text or a number")
            target[key] = value

    def remember(self, key: int) -> None:
        """Keep the value on top."""
        self.push(value := self.pop())
        self.memo[key] = value

    def recall(self, key: int) -> None:
        """Push a value that was kept."""
        if key not in self.memo:
            raise UnpickleError("it recalls a value that was never kept")
        self.push(self.memo[key])

    def look_up(self, module: Any, name: Any) -> None:
        """Push what the table has under a name."""
        full = f"{module}.{name}"
        if not (type(module) is type(name) is str) or full not in self.table:
            raise UnpickleError(f"it refers to {full[:100]!r}, which is not among the names that are read")
        self.push(self.table[full])

    def call(self, args: Any, function: Any) -> None:
        """Push what a function of the table returns."""
        if id(function) not in self.callable:
            raise UnpickleError(f"it calls a {type(function).__name__}, which is no function that is read")
        if type(args) is not tuple:
            raise UnpickleError(f"it calls a function with a {type(args).__name__}, expected a tuple")
        self.push(function(*args))

    def build(self, state: Any) -> None:
        """Hand a state to the value on top, where a function of the table made it to take one."""
        build = getattr(type(self.stack[-1] if self.stack else None), "build", None)
        if build is None:
            raise UnpickleError("it gives a state to a value that has none")
        build(self.stack[-1], state)

    def persistent_id(self, key: Any) -> None:
        """Push what the caller has under a key."""
        if self.persistent is None:
            raise UnpickleError("it refers to something outside of it")
        self.push(self.persistent(key))

    def protocol(self, version: int) -> None:
        """Only the version that is stated is looked at: instructions are the same in all."""
        if version > 5:
            raise UnpickleError(f"it has pickle's protocol {version}, expected at most 5")

    def long(self) -> int:
        """A number of up to 64 bits, as many as numbers need that are no computation."""
        if (count := self.number("B")) > 9:
            raise UnpickleError(f"it has a number of {count} bytes, expected at most 9")
        return int.from_bytes(self.take(count), "little", signed=True)

    def text(self, layout: str) -> str:
        """Text behind its length."""
        return self.take(self.number(layout)).decode("utf-8", "surrogatepass")

    def old_text(self, layout: str) -> str | bytes:
        """What Python 2 called text, behind its length."""
        piece = self.take(self.number(layout))
        return piece if self.encoding is None else piece.decode(self.encoding)


_STEPS: dict[int, Callable[[_Machine], Any]] = {
    ord(code): step
    for code, step in {
        "\x80": lambda m: m.protocol(m.number("B")),  # PROTO
        "\x95": lambda m: m.take(8),  # FRAME: how much of the program follows, for those who read it in pieces
        "(": lambda m: m.push(_MARK),  # MARK
        "0": lambda m: m.pop(),  # POP
        # values
        "N": lambda m: m.push(None),  # NONE
        "\x88": lambda m: m.push(True),  # NEWTRUE
        "\x89": lambda m: m.push(False),  # NEWFALSE
        "J": lambda m: m.push(m.number("<i")),  # BININT
        "K": lambda m: m.push(m.number("B")),  # BININT1
        "M": lambda m: m.push(m.number("<H")),  # BININT2
        "\x8a": lambda m: m.push(m.long()),  # LONG1
        "G": lambda m: m.push(m.number(">d")),  # BINFLOAT
        "X": lambda m: m.push(m.text("<I")),  # BINUNICODE
        "\x8c": lambda m: m.push(m.text("B")),  # SHORT_BINUNICODE
        "T": lambda m: m.push(m.old_text("<I")),  # BINSTRING
        "U": lambda m: m.push(m.old_text("B")),  # SHORT_BINSTRING
        "B": lambda m: m.push(m.take(m.number("<I"))),  # BINBYTES
        "C": lambda m: m.push(m.take(m.number("B"))),  # SHORT_BINBYTES
        # containers
        ")": lambda m: m.push(()),  # EMPTY_TUPLE
        "\x85": lambda m: m.tuple_of(1),  # TUPLE1
        "\x86": lambda m: m.tuple_of(2),  # TUPLE2
        "\x87": lambda m: m.tuple_of(3),  # TUPLE3
        "t": lambda m: m.push(tuple(m.since_mark())),  # TUPLE
        "]": lambda m: m.push([]),  # EMPTY_LIST
        "a": lambda m: m.append([m.pop()]),  # APPEND
        "e": lambda m: m.append(m.since_mark()),  # APPENDS
        "}": lambda m: m.push({}),  # EMPTY_DICT
        "s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),  # SETITEM
        "u": lambda m: m.set_items(m.since_mark()),  # SETITEMS
        # the memo
        "q": lambda m: m.remember(m.number("B")),  # BINPUT
        "r": lambda m: m.remember(m.number("<I")),  # LONG_BINPUT
        "\x94": lambda m: m.remember(len(m.memo)),  # MEMOIZE
        "h": lambda m: m.recall(m.number("B")),  # BINGET
        "j": lambda m: m.recall(m.number("<I")),  # LONG_BINGET
        # what is dangerous elsewhere
        "c": lambda m: m.look_up(m.line(), m.line()),  # GLOBAL
        "\x93": lambda m: m.look_up(*[m.pop(), m.pop()][::-1]),  # STACK_GLOBAL
        "R": lambda m: m.call(m.pop(), m.pop()),  # REDUCE
        "b": lambda m: m.build(m.pop()),  # BUILD
        "Q": lambda m: m.persistent_id(m.pop()),  # BINPERSID
    }.items()
}


def load(
    data: bytes,
    globals: Mapping[str, Any],
    persistent: Callable[[Any], Any] | None = None,
    encoding: str | None = None,
) -> Any:
    """The value that a pickle describes; nothing is imported, and nothing called but what `globals` has.

    Args:
        data: the pickle and nothing after it, of protocol 2 to 5 and with instructions that are in `_STEPS`.
        globals: "module.name" -> what stands for it. A function is called with what the pickle gives it, so it has to
            check that; what it returns may have a method `build(state)`, which takes what the pickle adds to it. Anything
            that cannot be called is a value.
        persistent: key -> the value that the pickle refers to by it; it has to check the key. None: there are none.
        encoding: of text that Python 2 wrote; None leaves it bytes.

    Raises:
        UnpickleError: it is not such a pickle. What `globals` and `persistent` raise goes through, but for a TypeError or
            ValueError of theirs, which becomes one.
    """
    value, end = load_next(data, 0, globals, persistent, encoding)
    if end < len(data):
        raise UnpickleError("there is more in it than one value")
    return value


def load_next(
    data: bytes,
    at: int,
    globals: Mapping[str, Any],
    persistent: Callable[[Any], Any] | None = None,
    encoding: str | None = None,
) -> tuple[Any, int]:
    """`load` a pickle that begins at `at`, whatever follows it: the value, and where it ends."""
    machine = _Machine(data, at, globals, persistent, encoding)
    while (code := machine.number("B")) != ord("."):  # STOP
        if code not in _STEPS:
            raise UnpickleError(f"it has the instruction {chr(code)!r}, which is not among those that are read")
        try:
            _STEPS[code](machine)
        except UnpickleError:
            raise
        except UnicodeDecodeError:
            raise UnpickleError("it has text that is in another encoding") from None
        except (TypeError, ValueError) as error:  # of a function in `globals`, given what it does not take
            raise UnpickleError(f"it calls a function with what that does not take: {error}") from error
    value = machine.pop()
    if machine.stack:
        raise UnpickleError("there is more in it than one value")
    return value, machine.at
