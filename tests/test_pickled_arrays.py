"""Pickles of arrays: what plain ones hold is read as Python reads it, and hostile ones do nothing."""

import os
import pickle
import pickletools
import subprocess
import tracemalloc

import numpy as np
import pytest
from cifar_files import python2_pickle

from scratchnet.data.files import DataError
from scratchnet.data.pickled_arrays import read_pickle
from scratchnet.unpickle import _STEPS

PLACE = read_pickle.__module__
INSTRUCTIONS = [*_STEPS]
DTYPES = ["bool", "u1", "i1", "<u2", ">i4", "<i8", "<f2", ">f4", "<f8"]
CIFAR = {
    b"labels": [3, 0, 255, 70_000],
    b"data": np.arange(48, dtype=np.uint8).reshape(4, 12),
    b"filenames": [b"a_s_1.png", b"long" * 100],
}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 3, 4)])
def test_arrays_are_read_as_python_reads_them(protocol, dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    for stored in (array, np.asfortranarray(array)):
        raw = pickle.dumps({"x": stored}, protocol)
        got, want = read_pickle(raw, "it")["x"], pickle.loads(raw)["x"]  # NumPy may turn them to its own byte order
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
    got = read_pickle(raw, "it")
    assert list(got) == list(CIFAR) and got[b"labels"] == CIFAR[b"labels"] and got[b"filenames"] == CIFAR[b"filenames"]
    np.testing.assert_array_equal(got[b"data"], CIFAR[b"data"])


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


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("name", EVIL)
def test_what_is_more_than_plain_values_is_refused_and_nothing_is_done(name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^f\.pkl is no pickle of plain values and arrays of numbers: [^\n]+$"):
        read_pickle(pickle.dumps({"data": [EVIL[name]]}, protocol), "f.pkl")
    assert not os.listdir(tmp_path)


def code(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


NDARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
BYTE = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
ENCODE = b"c_codecs\nencode\n"
FORGED = {
    "a call with too much": (code(ENCODE, b"(K\x01K\x02K\x03tR"), "what that does not take"),
    "another encoding": (code(ENCODE, b"X\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R"), "another encoding"),
    "outside": (code(b"K\x01Q"), "something outside of it"),
    "a huge array": (code(NDARRAY, b"(K\x01", b"J\xff\xff\xff\x7f\x85", BYTE, b"\x89U\x02abtb"), "of uint8 with 2 bytes"),
    "a negative array": (code(NDARRAY, b"(K\x01", b"J\xff\xff\xff\xff\x85", BYTE, b"\x89U\x02abtb"), "a side of -1"),
    "a short array": (code(NDARRAY, b"(K\x01K\x03\x85", BYTE, b"\x89U\x02abtb"), "of uint8 with 2 bytes"),
    "filled twice": (code(NDARRAY, 2 * (b"(K\x01K\x02\x85" + BYTE + b"\x89U\x02abtb")), "fills an array twice"),
    "no dtype": (code(NDARRAY, b"(K\x01K\x02\x85NU\x02ab\x89tb"), "none of numbers"),
    "a dtype of pointers": (code(b"cnumpy\ndtype\n(U\x01OK\x00K\x01tR"), "an array of 'O'"),
    "a dtype of 2^31 bytes": (code(b"cnumpy\ndtype\n(U\x0bV2147483647K\x00K\x01tR"), "an array of 'V2147483647'"),
    "a list": (code(b"]"), "a pickle of a list, expected a dict"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_what_no_pickler_writes_is_one_line(case):
    raw, message = FORGED[case]
    with pytest.raises(DataError, match=rf"^it is [^\n]*{message}"):
        read_pickle(raw, "it")


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
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_little_memory(name):
    raw = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="it makes more of its bytes than it has"):
            read_pickle(raw, "it")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(raw) + 2**20


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
    return (
        value is None or type(value) in (bool, int, float, str, bytes) or type(value).__module__ == PLACE
    )  # not filled


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
            raw[at:at] = bytes([rng.choice([*INSTRUCTIONS, *b"iobCI"])])
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
    sources += [pickle.dumps({**CIFAR, "x": [None, True, 2.5, -(2**70), ("ä",)]}, protocol) for protocol in (2, 3, 4)]
    sources += [pickle.dumps({"data": [evil]}, 2) for name, evil in EVIL.items() if name != "an instance"]
    calls = []
    for name in ("system", "open", "remove", "execv"):
        monkeypatch.setattr(os, name, lambda *arguments, name=name: calls.append(name))
    read = 0
    for _ in range(1000):
        raw = mutated(sources[rng.integers(5 if rng.random() < 0.7 else len(sources))], rng, sources)
        try:
            value = read_pickle(raw, "it")
        except DataError as error:
            assert str(error).startswith("it is ") and "\n" not in str(error) and len(str(error)) < 400
        else:
            assert holds_plain_values(value, set())
            read += 1
    monkeypatch.undo()
    assert not calls and not os.listdir(tmp_path)
    assert 50 < read < 600, "many are damaged where it counts, and many where it does not"
