"""The machine that reads pickles: what it makes is what pickle makes, and what a pickle could do elsewhere is refused."""

import os
import pickle
import pickletools
import re
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchnet import unpickle
from scratchnet.unpickle import UnpickleError, load

WHOLE = st.integers(-(2**63), 2**63 - 1)
KEYS = st.text(max_size=300) | WHOLE
VALUES = st.recursive(
    st.none() | st.booleans() | WHOLE | st.floats(allow_nan=False) | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=4)
    | st.lists(inner, max_size=5).map(tuple),
    max_leaves=20,
)  # fmt: skip


@given(VALUES, st.integers(2, 5))
def test_plain_values_are_those_of_pickle(value, protocol):
    data = pickle.dumps(value, protocol)
    found = load(data, {})
    assert found == value and pickle.dumps(found, protocol) == data, "types too, and what is there twice"


def test_bytes_and_the_text_of_python_2():
    for protocol in (3, 4, 5):
        assert load(pickle.dumps([b"ab", b"c" * 300], protocol), {}) == [b"ab", b"c" * 300]
    old = b"\x80\x02}(U\x01aT\x02\x00\x00\x00\xc3\xa9u."
    assert load(old, {}) == {b"a": b"\xc3\xa9"} and load(old, {}, encoding="utf-8") == {"a": "é"}
    with pytest.raises(UnpickleError, match="text that is in another encoding"):
        load(old, {}, encoding="ascii")


def test_a_value_may_hold_itself_and_lie_as_deep_as_it_likes():
    inside = load(b"\x80\x02]q\x00h\x00a.", {})
    assert inside[0] is inside
    assert load(b"]" * 200_000 + b"a" * 199_999 + b".", {})[0] is not None


ALLOWED = (
    "PROTO FRAME MARK POP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST APPEND APPENDS "
    "EMPTY_DICT SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID"
)


def test_what_is_not_in_the_list_is_refused():
    codes = {op.name: ord(op.code) for op in pickletools.opcodes}
    assert set(unpickle._STEPS) == {codes[name] for name in ALLOWED.split()}
    for code in set(range(256)) - set(unpickle._STEPS) - {ord(".")}:
        with pytest.raises(UnpickleError, match=re.escape(f"has the instruction {chr(code)!r}, which is not among")):
            load(bytes([0x80, 2, code]) + b"os\nsystem\n" * 3 + b".", {})


class Table:
    """A table of two functions and a value, and what they were called with."""

    def __init__(self):
        self.calls = []
        self.table = {"m.make": self.make, "m.other": self.other, "m.value": "text"}

    def make(self, *args):
        self.calls.append(args)
        return Made()

    def other(self, number: int):
        return {}[number]


class Made(dict):
    def build(self, state):
        self.state = state


def test_only_functions_of_the_table_are_called_and_only_build_takes_a_state():
    table = Table()
    found = load(b"\x80\x02cm\nmake\nK\x01\x85R}X\x01\x00\x00\x00aNsb.", table.table)
    assert table.calls == [(1,)] and found.state == {"a": None} and not hasattr(found, "a")
    assert load(b"cm\nvalue\n.", table.table) == "text"
    assert load(b"\x8c\x01m\x8c\x05value\x93.", table.table) == "text"
    assert load(b"K\x07Q.", {}, lambda key: key + 1) == 8


def test_what_lies_outside_cannot_be_called():
    with pytest.raises(UnpickleError, match="calls a type, which is no function"):
        load(b"K\x07Q)R.", {}, lambda key: list)


REFUSED = {
    "a function that is not in the table": (b"cos\nsystem\n(X\x01\x00\x00\x00atR.", "refers to 'os.system'"),
    "by the stack": (b"\x8c\x05posix\x8c\x06system\x93\x8c\x01a\x85R.", "refers to 'posix.system'"),
    "a name of the table, and further": (b"cm\nmake.__globals__\n.", r"refers to 'm.make.__globals__'"),
    "a name cut elsewhere": (b"cm.ma\nke\n.", r"refers to 'm.ma.ke'"),
    "numbers for names": (b"K\x01K\x02\x93.", "refers to '1.2'"),
    "a call of a value": (b"cm\nvalue\n)R.", "calls a str, which is no function"),
    "a call of a list": (b"])R.", "calls a list, which is no function"),
    "a call of what was made": (b"cm\nmake\n)R)R.", "calls a Made, which is no function"),
    "a call with a list": (b"cm\nmake\n]R.", "calls a function with a list, expected a tuple"),
    "a call that does not fit": (b"cm\nother\n)R.", "calls a function with what that does not take: .*other"),
    "a state for a dict": (b"}}b.", "gives a state to a value that has none"),
    "a state for a function": (b"cm\nmake\n}b.", "gives a state to a value that has none"),
    "a state for nothing": (b"}b.", "gives a state to a value that has none"),
    "something outside": (b"K\x01Q.", "refers to something outside"),
    "a key that is a tuple": (b"})Ns.", "a key of a dict is a tuple"),
    "a key that is a fraction": (b"}G" + bytes(8) + b"Ns.", "a key of a dict is a float"),
    "a key of 72 bits": (b"}\x8a\x09" + b"\x01" * 9 + b"Ns.", "a key of a dict is a int"),
    "a key alone": (b"}(K\x01u.", "a key without a value"),
    "an item for a list": (b"]K\x01K\x02s.", "adds to something that is no dict"),
    "an entry for a dict": (b"}K\x01a.", "adds to something that is no list"),
    "an entry for nothing": (b"(K\x01e.", "adds to something that is no list"),
    "a long number": (b"\x8a\xff" + bytes(255) + b".", "has a number of 255 bytes"),
    "a mark as a value": (b"(.", "takes a value that is not there"),
    "a mark kept": (b"(q\x00.", "takes a value that is not there"),
    "no mark": (b"t.", "takes a value that is not there"),
    "no value": (b".", "takes a value that is not there"),
    "never kept": (b"h\x07.", "recalls a value that was never kept"),
    "two values": (b"NN.", "more in it than one value"),
    "more after the end": (b"N.N", "more in it than one value"),
    "protocol 6": (b"\x80\x06N.", "protocol 6, expected at most 5"),
    "no end": (b"N", "ends too early"),
    "a long text": (b"X\xff\xff\xff\xffab", "ends too early"),
    "a name without an end": (b"cos", "ends too early"),
    "text that is none": (b"X\x01\x00\x00\x00\xff.", "text that is in another encoding"),
    "a name that is none": (b"c\xff\n\xff\n.", "text that is in another encoding"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_sentence(name):
    data, message = REFUSED[name]
    with pytest.raises(UnpickleError, match=message) as caught:
        load(data, Table().table)
    assert "\n" not in str(caught.value)


class Exploit:
    def __init__(self, function, *args):
        self.parts = function, args

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_executed_and_nothing_imported(protocol, tmp_path):
    target = tmp_path / "executed"
    for function, *args in (
        (os.system, f"touch {target}"), (eval, f"open({str(target)!r}, 'w')"), (open, str(target), "w"),
        (__import__, "this"), (os.mkdir, str(target)),
    ):  # fmt: skip
        data = pickle.dumps([1, {"a": Exploit(function, *args)}], protocol)
        with pytest.raises(UnpickleError):
            load(data, Table().table)
    for data in (b"cthis\ns\n.", b"\x8c\x04this\x8c\x01s\x93.", b"(ithis\ns\n."):
        with pytest.raises(UnpickleError):
            load(data, {})
    assert not target.exists() and "this" not in sys.modules


def test_whatever_bytes_come_only_its_own_error_comes_out():
    rng = np.random.default_rng(0)
    whole = pickle.dumps({"a": [1, 2.5, "text", (None, True, {7: [b"bytes"] * 3})], "b": {"c": 2**40}}, 4)
    codes = np.array([*unpickle._STEPS, ord(".")], np.uint8)
    tried = refused = 0
    for trial in range(20_000):
        if trial % 2:
            data = b"\x80\x02" + rng.choice(codes, rng.integers(1, 40)).tobytes() + b"."
        else:
            data = bytearray(whole)
            for at in rng.integers(0, len(data), rng.integers(1, 5)):
                data[at] = rng.integers(256)
            data = bytes(data[: rng.integers(len(data) // 2, 2 * len(data))])
        tried += 1
        try:
            load(data, Table().table, lambda key: None)
        except UnpickleError as error:
            refused += 1
            assert "\n" not in str(error)
        except KeyError:
            pass  # of `other`, which goes through
    assert tried // 2 < refused < tried


def test_every_truncation_is_an_error():
    data = pickle.dumps({"a": [1, 2.5, "text", (None, True)], "b": {"c": 2**40}}, 2)
    for length in range(len(data)):
        with pytest.raises(UnpickleError):
            load(data[:length], {})


@pytest.mark.parametrize("code", [b"}", b"]", b"G" + bytes(8), b"cm\nmake\n)R", b"(", b"h\x00"])
def test_memory_is_bounded_by_the_length(code):
    data = b"\x80\x02}q\x00(" + code * 20_000
    tracemalloc.start()
    with pytest.raises(UnpickleError, match="ends too early"):
        load(data, Table().table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * len(data) + 2**20
