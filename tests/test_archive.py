"""The bytes of a checkpoint: what is read is what was written, and anything else is refused, whatever the damage."""

import io
import json
import os
import re
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scratchnet.training import archive
from scratchnet.training.checkpoint import CheckpointError, load, save

SLOW = os.environ.get("SCRATCHNET_SLOW") == "1"
ARRAYS = {
    "model/conv.weight": np.arange(6, dtype=np.float32).reshape(2, 1, 3),
    "optimizer/step": np.array(7, np.int64),
    "optimizer/mean": np.linspace(-1, 1, 80, dtype=np.float32).reshape(8, 10),
    "mask": np.array([True, False]),
    "order": np.array([3, 1, 2], np.uint8),
}
HEADER = {"network": "cifar 0.5", "epoch": 3, "accuracy": 0.1 + 0.2, "rng": {"state": 2**127 + 1}, "note": None}


def content(arrays, header):
    """All that must come back: keys in order, dtypes, shapes, bytes, and the header without what `save` added."""
    own = {key: value for key, value in header.items() if key != "checkpoint"}
    return [(key, a.dtype.str, a.shape, a.tobytes()) for key, a in arrays.items()], own


DTYPES = st.sampled_from(["?", "i1", "u2", "<i8", ">i4", "f2", "<f4", ">f8", "c8", "c16"])
ANY_ARRAY = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="\\"), min_size=1)


@settings(deadline=None, max_examples=80)
@given(st.dictionaries(KEYS, ANY_ARRAY, max_size=4), st.dictionaries(st.text(), JSON, max_size=4))
def test_any_numbers_and_any_json_come_back_bit_for_bit(arrays, header):
    loaded = archive.decode(archive.encode(arrays, header))
    assert content(*loaded) == content(arrays, {**header})
    assert all(array.flags.writeable and array.flags.c_contiguous for array in loaded[0].values())


def test_arrays_in_any_memory_order_come_back():
    plain = np.arange(24.0).reshape(2, 3, 4)
    views = {"fortran": np.asfortranarray(plain), "sliced": plain[:, ::2], "turned": plain.transpose(2, 0, 1)}
    loaded, _ = archive.decode(archive.encode(views, {}))
    assert all(np.array_equal(loaded[key], view) for key, view in views.items())


def test_the_header_says_what_wrote_the_file(tmp_path):
    save(tmp_path / "a.npz", ARRAYS, HEADER | {"checkpoint": "is replaced"})
    own = load(tmp_path / "a.npz")[1]["checkpoint"]
    assert own["format"] == "scratchnet checkpoint" and own["version"] == 1
    assert own["numpy"] == np.__version__ and isinstance(own["scratchnet"], str)
    assert re.fullmatch("[0-9a-f]{64}", own["sha256"])


def test_the_hash_depends_on_every_part_of_the_content():
    def sha(header=HEADER, arrays=ARRAYS, **changed):
        return archive.decode(archive.encode(arrays | changed, header))[1]["checkpoint"]["sha256"]

    order = ARRAYS["order"]
    changed = [HEADER | {"epoch": 4}, {}], [order.astype(np.int8), order.reshape(3, 1), order[::-1]]
    hashes = {sha(), sha(more=order), *map(sha, changed[0]), *(sha(order=value) for value in changed[1])}
    assert len(hashes) == 7
    turned = dict(reversed(HEADER.items())), dict(reversed(ARRAYS.items()))
    assert sha(*turned) == sha(), "the order of the keys is no part of it"


def test_equal_content_gives_equal_files_and_numpy_opens_them(tmp_path):
    for name in ("a.npz", "b.npz"):
        save(tmp_path / name, ARRAYS, HEADER)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as opened:
        assert np.array_equal(opened["model/conv.weight"], ARRAYS["model/conv.weight"])
        assert json.loads(opened["__header__"].tobytes())["epoch"] == 3


WHOLE = archive.encode(ARRAYS, HEADER)
with zipfile.ZipFile(io.BytesIO(WHOLE)) as whole:
    MEMBERS = [(info.filename, whole.read(info)) for info in whole.infolist()]


@pytest.fixture
def trial(monkeypatch):
    """`trial(data)`: whether `load` refuses these bytes; it fails the test when they load as something else."""
    path, wanted = Path("damaged.npz"), content(ARRAYS, HEADER)

    def refused(data):
        monkeypatch.setattr(archive, "read_regular", lambda path: data)  # thousands of real files take too long
        try:
            loaded = load(path)
        except CheckpointError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            return True
        assert content(*loaded) == wanted, "loaded, with another content and no error"
        return False

    return refused


def test_every_single_bit_flip_is_an_error_or_changes_nothing(trial):
    tried = refused = 0
    for position, byte in enumerate(WHOLE):
        for bit in range(8):
            refused += trial(WHOLE[:position] + bytes([byte ^ 1 << bit]) + WHOLE[position + 1 :])
            tried += 1
    assert tried == 8 * len(WHOLE) > 16_000
    assert refused > 0.8 * tried, "only what zip keeps twice, and dates, may be flipped unnoticed"


def test_every_truncation_is_an_error(trial):
    assert all(trial(WHOLE[:length]) for length in range(len(WHOLE)))


def edited(data, rng):
    """Some bytes of `data` overwritten, inserted, removed, zeroed, repeated or swapped."""
    a, b = sorted(rng.integers(0, len(data) + 1, 2))
    b = min(b, a + rng.integers(1, 40))
    noise = rng.bytes(int(b - a) + 1)
    return [
        data[:a] + noise + data[a + len(noise) :],
        data[:a] + noise + data[a:],
        data[:a] + data[b:],
        data[:a] + bytes(b - a) + data[b:],
        data[:b] + data[a:b] + data[b:],
        data[b:] + data[:b],
    ][rng.integers(6)]


def test_random_edits_are_an_error_or_change_nothing(trial):
    rng = np.random.default_rng(0)
    for _ in range(20_000 if SLOW else 2000):
        damaged = edited(WHOLE, rng)
        for _ in range(rng.integers(3)):
            damaged = edited(damaged, rng)
        trial(damaged)


def forge(members, compression=zipfile.ZIP_STORED):
    """A zip archive with these (name, bytes) members: every checksum right, so that only the content tells."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def npy(array_or_header, data=b""):
    """The bytes of a .npy file, of an array or with a header of one's own."""
    if isinstance(array_or_header, str):
        text = array_or_header.encode().ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array_or_header)
    return buffer.getvalue()


def with_header(change):
    """The checkpoint with its header changed and everything else, the hash too, as it was."""
    header = json.loads(MEMBERS[0][1][128:])
    header = change(header) or header
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return forge([("__header__.npy", npy(np.frombuffer(text, np.uint8))), *MEMBERS[1:]])


HUGE_BUT_POSSIBLE = "{'descr': '<f8', 'fortran_order': False, 'shape': (4096, 4096), }"  # 128 MiB
HUGE = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 99999999999), }")
LONGER = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }", bytes(17))
FORTRAN = npy("{'descr': '<f8', 'fortran_order': True, 'shape': (1,), }", bytes(8))
PICKLE = npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\nsystem\n(S'false'\ntR.")
SPACED = np.frombuffer(MEMBERS[0][1][128:].replace(b"{", b"{ "), np.uint8)
OTHER = with_header(lambda header: header["checkpoint"].update(format="?"))
NEWER = with_header(lambda header: header["checkpoint"].update(version=2, scratchnet="9.9"))
FORGED = {
    "member compressed": (forge(MEMBERS, zipfile.ZIP_DEFLATED), "a member is compressed"),
    "byte before": (b"#" + WHOLE, "there are bytes before or after it"),
    "byte after": (WHOLE + b"#", "there are bytes before or after it"),
    "zip comment": (WHOLE[:-2] + b"\1\0#", "there are bytes before or after it"),
    "array changed": (forge([*MEMBERS[:-1], ("order.npy", npy(np.array([3, 1, 1], np.uint8)))]), "SHA-256"),
    "array added": (forge([*MEMBERS, ("more.npy", npy(np.ones(2)))]), "SHA-256"),
    "array removed": (forge(MEMBERS[:-1]), "SHA-256"),
    "array renamed": (forge([*MEMBERS[:-1], ("ordre.npy", MEMBERS[-1][1])]), "SHA-256"),
    "header changed": (with_header(lambda header: header.update(epoch=4)), "SHA-256"),
    "no checkpoint": (npy(np.ones(3)), "not a zip file"),
    "text inside": (forge([*MEMBERS, ("notes.txt", b"hello")]), "'notes.txt' does not end in .npy"),
    "pickle inside": (forge([*MEMBERS, ("o.npy", PICKLE)]), "a member is not a .npy file"),
    "fortran order": (forge([*MEMBERS, ("o.npy", FORTRAN)]), "a member is not a .npy file"),
    "huge shape": (forge([*MEMBERS, ("o.npy", HUGE)]), r"size does not go with its shape \(99999999999, 99999999999\)"),
    "odd size": (forge([*MEMBERS, ("o.npy", LONGER)]), "size does not go with its shape"),
    "no .npy": (forge([*MEMBERS, ("order", MEMBERS[-1][1])]), "'order' does not end in .npy"),
    "name cut by NUL": (WHOLE.replace(b"order.npy", b"order\0npy"), "'order' does not end in .npy"),
    "header spaced": (forge([(MEMBERS[0][0], npy(SPACED)), *MEMBERS[1:]]), "its header is not as scratchnet writes it"),
    "header a list": (with_header(lambda header: [header]), "does not say that it is one"),
    "version 0": (with_header(lambda header: header["checkpoint"].update(version=0)), "not as scratchnet writes it"),
    "version true": (
        with_header(lambda header: header["checkpoint"].update(version=True)),
        "does not say that it is one",
    ),
    "two-line writer": (
        with_header(lambda header: header["checkpoint"].update(numpy="2\n3")),
        "which versions of .* wrote",
    ),
    "no member": (forge([]), "first member is not __header__.npy"),
    "no header": (forge(MEMBERS[1:]), "first member is not __header__.npy"),
    "other format": (OTHER, "does not say that it is one"),
    "newer format": (NEWER, "has format version 2, written by scratchnet 9.9; this one reads versions up to 1"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_file_is_refused_for_its_reason(tmp_path, name):
    data, message = FORGED[name]
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path / 'a.npz'))} .*{message}"):
        load(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(forge([*MEMBERS, MEMBERS[-1]]))
    with pytest.raises(CheckpointError, match="a member is there twice"):
        load(tmp_path / "a.npz")


def test_a_forged_shape_is_refused_before_memory_is_asked_for():
    archive.decode(WHOLE)  # what is made once only, such as compiled patterns, is made here
    tracemalloc.start()
    with pytest.raises(ValueError, match="does not go with its shape"):
        archive.decode(forge([*MEMBERS, ("o.npy", npy(HUGE_BUT_POSSIBLE))]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_forged_zip_directory_cannot_ask_for_memory(tmp_path):
    entry = WHOLE.rindex(b"PK\1\2")
    huge = (0xFFFFFFF0).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(WHOLE[: entry + 20] + huge + huge + WHOLE[entry + 28 :])
    with pytest.raises(CheckpointError, match="members are said to be larger than the file"):
        load(tmp_path / "a.npz")
