"""Pickles that are read without being executed: what plain ones hold, and that hostile ones do nothing."""

import io
import os
import pickle
import pickletools
import subprocess
import time
import tracemalloc

import numpy as np
import pytest
from cifar_files import python2_pickle
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchnet.data import unpickle as machine
from scratchnet.data.files import DataError
from scratchnet.data.pickled_arrays import NUMPY
from scratchnet.data.unpickle import MAX_STEPS, OPCODES, Allowed

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text() | st.binary() | st.integers(), inner, max_size=5)
    ),
)
DTYPES = ["bool", "u1", "i1", "<u2", ">i4", "<i8", "<f2", ">f4", "<f8"]
CIFAR = {
    b"labels": [3, 0, 255, 70_000],
    b"data": np.arange(48, dtype=np.uint8).reshape(4, 12),
    b"filenames": [b"a_s_1.png", b"long" * 100],
}


def unpickle(raw, what, allowed=NUMPY):
    return machine.unpickle(raw, what, allowed)


@given(PLAIN, st.integers(2, 5))
def test_plain_values_are_read_as_python_reads_them(value, protocol):
    assert repr(unpickle(pickle.dumps(value, protocol), "it")) == repr(value)  # 1 is not True


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 3, 4)])
def test_arrays_are_read_as_python_reads_them(protocol, dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    for stored in (array, np.asfortranarray(array)):
        raw = pickle.dumps({"x": stored}, protocol)
        got, want = unpickle(raw, "it")["x"], pickle.loads(raw)["x"]  # NumPy may turn them to its own byte order
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_array_equal(got, stored)


def test_what_python_2_wrote_comes_as_bytes_and_arrays():
    raw = python2_pickle(CIFAR)
    assert b"numpy.core.multiarray" in raw and b"U\x06labels" in raw
    assert {op.name for op, *_ in pickletools.genops(raw)} >= {
        "SHORT_BINSTRING",
        "BINSTRING",
        "GLOBAL",
        "REDUCE",
        "BUILD",
    }
    got = unpickle(raw, "it")
    assert list(got) == list(CIFAR) and got[b"labels"] == CIFAR[b"labels"] and got[b"filenames"] == CIFAR[b"filenames"]
    np.testing.assert_array_equal(got[b"data"], CIFAR[b"data"])


def test_a_value_in_several_places_is_one_and_a_list_may_hold_itself():
    shared = [1]
    first, second = unpickle(pickle.dumps([shared, shared]), "it")
    assert first is second
    shared.append(shared)
    got = unpickle(pickle.dumps(shared), "it")
    assert got[1] is got


class Does:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


EVIL = {
    "a command": Does(os.system, "touch pwned"),
    "a process": Does(subprocess.Popen, ["touch", "pwned"]),
    "code": Does(eval, "open('pwned', 'w')"),
    "an import": Does(__import__, "os"),
    "a file": Does(open, "pwned", "w"),
    "an attribute": Does(getattr, [], "append"),
    "a pickle inside": Does(pickle.loads, b"cos\nsystem\n(S'touch pwned'\ntR."),
    "bytes with a size": Does(bytes, 1 << 40),
    "a numpy file": Does(np.load, "x.npy", None, True),
    "an instance": Does,
    "a set": {1, 2},
    "a complex number": 1j,
    "an array of objects": np.array([None, {}], object),
    "an array of records": np.zeros(2, [("a", "i4")]),
    "an array of dates": np.zeros(2, "M8[s]"),
    "an array of texts": np.array(["abc"]),
    "a subclass": np.ma.zeros(3),
    "a key that is a tuple": {(1, 2): 3},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", EVIL)
def test_what_is_more_than_plain_values_is_refused_and_nothing_is_done(name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"^f\.pkl is (a pickle with [^\n]+; expected plain values|no pickle, or a damaged)"
    ):
        unpickle(pickle.dumps({"data": [EVIL[name]]}, protocol), "f.pkl")
    assert not os.listdir(tmp_path)


def deep(value, levels):
    for _ in range(levels):
        value = (value,)
    return value


def code(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


NDARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
BYTE = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
ENCODE = b"c_codecs\nencode\n"
FORGED = {
    "nothing": (b"", "damaged"),
    "no end": (b"\x80\x02K\x01", "its end is missing"),
    "an empty stack": (code(), "damaged"),
    "two values": (code(b"K\x01K\x02"), "damaged"),
    "a mark that stays": (code(b"(K\x01"), "left over"),
    "more behind it": (code(b"K\x01") + b"K", "left over"),
    "no mark": (code(b"]e"), "damaged"),
    "a tuple of nothing": (code(b"\x86"), "a tuple of more values than there are"),
    "a memo that is empty": (code(b"h\x07"), "damaged"),
    "append to a tuple": (code(b")K\x01a"), "append to a tuple"),
    "items for a list": (code(b"]K\x01K\x02s"), "to put into a list"),
    "a key without a value": (code(b"}(K\x01u"), "to put into a dict"),
    "a deep key": (b"\x80\x02}K\x01" + b"\x85" * 100_000 + b"K\x02s.", "a tuple as the key of a dict"),
    "4 GB of text": (code(b"X\xff\xff\xff\xff"), "its end is missing"),
    "2^63 bytes": (code(b"\x8e" + b"\xff" * 7 + b"\x7f"), "its end is missing"),
    "no UTF-8": (code(b"X\x01\x00\x00\x00\xff"), "damaged"),
    "a name without an end": (code(b"c" + b"n" * 1000), "damaged"),
    "a call of a text": (code(b"U\x01a)R"), "a call of a bytes"),
    "a call of a mark": (code(b"cnumpy\nndarray\n)R"), "a call of a object"),
    "a call with a list": (code(ENCODE, b"]R"), "a call of a function"),
    "a call with too much": (code(ENCODE, b"(K\x01K\x02K\x03tR"), "damaged"),
    "another encoding": (code(ENCODE, b"X\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R"), "another encoding"),
    "a state for a list": (code(b"]}b"), "a state for a list"),
    "a state for a text": (code(b"U\x01a}b"), "a state for a bytes"),
    "outside": (code(b"K\x01Q"), "outside the file"),
    "text protocol": (b"I1\n.", "the opcode b'I'"),
    "an instance": (b"(ios\nsystem\n.", "the opcode b'i'"),
    "an extension": (code(b"\x82\x01"), r"the opcode b'\\x82'"),
    "a next buffer": (code(b"\x97"), r"the opcode b'\\x97'"),
    "a huge array": (code(NDARRAY, b"(K\x01", b"J\xff\xff\xff\x7f\x85", BYTE, b"\x89U\x02abtb"), "of uint8 with 2 bytes"),
    "a negative array": (code(NDARRAY, b"(K\x01", b"J\xff\xff\xff\xff\x85", BYTE, b"\x89U\x02abtb"), "a side of -1"),
    "a short array": (code(NDARRAY, b"(K\x01K\x03\x85", BYTE, b"\x89U\x02abtb"), "of uint8 with 2 bytes"),
    "filled twice": (code(NDARRAY, 2 * (b"(K\x01K\x02\x85" + BYTE + b"\x89U\x02abtb")), "filled twice"),
    "no dtype": (code(NDARRAY, b"(K\x01K\x02\x85NU\x02ab\x89tb"), "none of numbers"),
    "a dtype of pointers": (code(b"cnumpy\ndtype\n(U\x01OK\x00K\x01tR"), "an array of 'O'"),
    "a dtype of 2^31 bytes": (code(b"cnumpy\ndtype\n(U\x0bV2147483647K\x00K\x01tR"), "an array of 'V2147483647'"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_what_no_pickler_writes_is_one_line(case):
    raw, message = FORGED[case]
    with pytest.raises(DataError, match=rf"^it is [^\n]*{message}"):
        unpickle(raw, "it")


BOMBS = {
    "a text encoded again and again": code(
        b"](X", (1 << 20).to_bytes(4, "little"), b"a" * (1 << 20), b"q\x000",
        b"".join([ENCODE, b"h\x00X\x06\x00\x00\x00latin1\x86R"] * 500), b"e",
    ),
    "an array turned round again and again": code(
        b"](T", (1 << 20).to_bytes(4, "little"), b"a" * (1 << 20), b"q\x00",
        b"cnumpy\ndtype\n(U\x02u2K\x00K\x01tR(K\x03U\x01>NNNtbq\x01",
        b"".join([NDARRAY, b"(K\x01J\x00\x00\x08\x00\x85h\x01\x89h\x00tb"] * 500), b"e",
    ),
    "300,000 empty dicts": b"\x80\x02(" + b"}" * 300_000 + b"t.",
    "300,000 marks": b"\x80\x02" + b"(" * 300_000 + b".",
    "nested 100,000 times": b"\x80\x02)" + b"\x85" * 100_000 + b"Q.",
    "lists of lists of lists": code(b"]q\x00", b"".join(b"](h%ch%ceq%c" % (k, k, k + 1) for k in range(200)), b"K\x01"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_little_memory_and_time(name, monkeypatch):
    monkeypatch.setattr("scratchnet.data.unpickle.MAX_STEPS", MAX_STEPS // 10)
    raw, started = BOMBS[name], time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            unpickle(raw, "it")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(raw) + 100 * MAX_STEPS // 10 + 2**20
    assert time.perf_counter() - started < 60


def holds_plain_values(value, seen):
    if id(value) in seen:
        return True
    seen.add(id(value))
    if type(value) in (list, tuple):
        return all(holds_plain_values(one, seen) for one in value)
    if type(value) is dict:
        return all(holds_plain_values(one, seen) for pair in value.items() for one in pair)
    if type(value) is np.ndarray:
        return value.dtype.kind in "biuf" and value.nbytes < 2**20
    return value is None or type(value) in (bool, int, float, str, bytes) or any(
        value is stands for stands in NUMPY.names.values()
    ) or type(value).__name__ == "_Kind"  # a dtype of its own  # fmt: skip


def mutated(raw, rng, others):
    raw = bytearray(raw)
    for _ in range(rng.integers(1, 6)):
        at, kind = int(rng.integers(len(raw))), rng.integers(6)
        if kind == 0:
            raw[at] ^= 1 << rng.integers(8)
        elif kind == 1:
            raw[at] = rng.integers(256)
        elif kind == 2:
            del raw[at : at + int(rng.integers(1, 9))]
        elif kind == 3:
            raw[at:at] = bytes([rng.choice([*b"".join(OPCODES), *b"iobCI"])])
        elif kind == 4:
            other = others[rng.integers(len(others))]
            start = int(rng.integers(len(other)))
            raw[at:at] = other[start : start + int(rng.integers(1, 40))]
        else:
            raw[at:at] = b"cos\nsystem\nU\x0btouch pwned\x85R"
        raw = raw or bytearray(b".")
    return bytes(raw)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_1000_mutated_and_hostile_pickles_are_refused_or_read_and_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(17)
    sources = [python2_pickle(CIFAR)]
    sources += [
        pickle.dumps({**CIFAR, "x": [None, True, 2.5, -(2**70), ("ä",)]}, protocol) for protocol in (2, 3, 4, 5)
    ]
    sources += [pickle.dumps({"data": [evil]}, 2) for name, evil in EVIL.items() if name != "an instance"]
    calls = []
    for name in ("system", "open", "remove", "execv"):
        monkeypatch.setattr(os, name, lambda *arguments, name=name: calls.append(name))
    read = 0
    for _ in range(1000):
        raw = mutated(sources[rng.integers(5 if rng.random() < 0.7 else len(sources))], rng, sources)
        try:
            value = unpickle(raw, "it")
        except DataError as error:
            assert str(error).startswith("it is ") and "\n" not in str(error) and len(str(error)) < 400
        else:
            assert holds_plain_values(value, set())
            read += 1
    monkeypatch.undo()
    assert not calls and not os.listdir(tmp_path)
    assert 50 < read < 600, "many are damaged where it counts, and many where it does not"


@settings(deadline=None)
@given(st.lists(st.sampled_from([*OPCODES, b"\x00", b"\x01", b"\x05", b"numpy\nndarray\n", b"abc"]), max_size=60))
def test_any_opcodes_in_any_order_are_read_or_refused(parts):
    try:
        unpickle(code(*parts), "it")
    except DataError as error:
        assert "\n" not in str(error)


def test_a_table_of_ones_own_says_what_may_be_named_made_and_filled():
    class Thing:
        def __init__(self, size):
            self.size = size

    def fill(thing, state):
        thing.state = state

    def found(key):
        if key != ("weights", 0):
            raise ValueError(f"there is no {key}")
        return np.zeros(3)

    mark = object()
    table = Allowed({"a Thing": Thing, "a mark": mark, **NUMPY.names}, {Thing: fill, **NUMPY.states}, found)
    thing, what, weights = unpickle(
        code(b"ca\nThing\nK\x05\x85R}U\x01kK\x02sbca\nmark\n(X\x07\x00\x00\x00weightsK\x00tQ\x87"), "it", table
    )
    assert (type(thing), thing.size, thing.state, what is mark, weights.shape) == (Thing, 5, {b"k": 2}, True, (3,))
    with pytest.raises(DataError, match="there is no 1"):
        unpickle(code(b"K\x01Q"), "it", table)
    with pytest.raises(DataError, match="the name 'a.Thing'"):
        unpickle(code(b"ca\nThing\n"), "it")


def test_the_longest_file_of_cifar_100_has_fewer_steps_than_are_allowed():
    names = {b"filenames": [b"name_%06d.png" % k for k in range(50_000)], b"fine_labels": [7] * 50_000}
    raw = python2_pickle({**names, b"coarse_labels": [3] * 50_000})
    assert sum(1 for _ in pickletools.genops(io.BytesIO(raw))) < MAX_STEPS / 4
