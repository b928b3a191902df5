"""PyTorch's files without PyTorch: what is read is what PyTorch reads, and 1,000 hostile files do no harm."""

import encodings.cp437  # noqa: F401 (zipfile would import it while a hostile file is being read)
import io
import os
import pickle
import re
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch_files import STORAGES, Tensor, legacy, members, program, tensors, zipped

import scratchnet as sn
from scratchnet.training.archive import CheckpointError
from scratchnet.weights import torch_file

SLOW = os.environ.get("SCRATCHNET_SLOW") == "1"
HOSTILE = 20_000 if SLOW else 1000
STATE = {
    "features.0.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2) / 7,
    "features.0.bias": np.array([1.5, -2.25], np.float32),
    "features.1.num_batches_tracked": np.array(2**40 + 1, np.int64),
    "empty": np.zeros((0, 3), np.float64),
    "half": np.array([[0.1, 65504.0]], np.float16),
}
WHOLE = zipped(members(*tensors(STATE)))
OLD = legacy(*tensors(STATE))


def content(state):
    return [(key, a.dtype.str, a.shape, a.tobytes()) for key, a in state.items()]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("form", [lambda *given: zipped(members(*given)), legacy])
def test_a_state_comes_back_bit_for_bit_and_can_be_written_into(form, order, tmp_path):
    (tmp_path / "a.pth").write_bytes(form(*tensors(STATE), order))
    found = sn.load(tmp_path / "a.pth")
    assert content(found) == content(STATE)
    assert all(array.flags.writeable and array.dtype.isnative for array in found.values())


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", STORAGES)
def test_every_kind_of_number_is_read(dtype, order):
    numbers = np.array([0, 1, 2, 127]) if dtype != "bfloat16" else np.array([0, 0x3F80, 0x4049, 0x7F7F])
    found = torch_file.decode(zipped(members({"a": Tensor(0, (4,), (1,))}, [(dtype, numbers)], order)))["a"]
    if dtype == "bfloat16":
        assert found.dtype == np.float32 and found.view(np.uint32).tolist() == [n << 16 for n in numbers.tolist()]
    else:
        assert np.array_equal(found, numbers.astype(dtype)) and found.dtype == np.dtype(dtype)


@st.composite
def views(draw):
    """(storage, a view of it): any strides and offset within."""
    storage = np.arange(draw(st.integers(1, 60)), dtype=np.float32)
    size, stride, left = [], [], storage.size - 1
    offset = draw(st.integers(0, left))
    left -= offset
    for _ in range(draw(st.integers(0, 4))):
        step = draw(st.integers(1, 12))
        size.append(draw(st.integers(1, 1 + min(left // step, 4))))
        stride.append(step)
        left -= (size[-1] - 1) * step
    strides = [4 * step for step in stride]
    return storage, Tensor(0, tuple(size), tuple(stride), offset), np.ndarray(size, "f4", storage, 4 * offset, strides)


@given(views())
def test_strides_and_offsets_are_followed(case):
    storage, tensor, wanted = case
    if wanted.size <= storage.size:  # strides may make numbers of several places one
        found = torch_file.decode(zipped(members({"a": tensor}, [("f4", storage)])))["a"]
        assert np.array_equal(found, wanted) and found.shape == wanted.shape


def test_tensors_that_share_a_storage_share_memory():
    whole = {"a": Tensor(0, (4,), (1,)), "b": Tensor(0, (2, 2), (1, 2)), "c": Tensor(0, (2,), (1,), 2)}
    found = torch_file.decode(zipped(members(whole, [("f4", np.arange(4))])))
    found["a"][2] = 9
    assert found["b"].tolist() == [[0, 9], [1, 3]] and found["c"].tolist() == [9, 3]


def test_the_state_dict_of_a_checkpoint_is_taken():
    state, storages = tensors(STATE)
    rest = {"optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1, "params": [0, 1]}]}, "epoch": 4}
    for name in ("model", "state_dict", "model_state_dict"):
        assert content(torch_file.decode(zipped(members({name: state} | rest, storages)))) == content(STATE)


OTHERS = {
    "a list": ([1, 2], "holds a list of 2, no state_dict"),
    "a tensor": (Tensor(0, (2,), (1,)), r"holds a tensor \(2,\), no state_dict"),
    "a run without a network": ({"epoch": 3, "lr": "x"}, r"nor one under .*, but 'epoch' \(a int\), 'lr' \(a str\)"),
    "two networks": (dict.fromkeys(("model", "state_dict"), {"a": Tensor(0, (2,), (1,))}), r"'model' \(a dict of 1\)"),
    "an empty dict": ({}, "but nothing"),
    "a number among them": ({"a": Tensor(0, (2,), (1,)), "b": 3}, r"'b' \(a int\)"),
    "beyond its storage": ({"a": Tensor(0, (3,), (1,))}, r"size \(3,\), stride \(1,\) and offset 0, which does not lie in"),
    "an offset beyond it": ({"a": Tensor(0, (2,), (1,), 1)}, "offset 1, which does not lie in its storage of 2"),
    "a stride beyond it": ({"a": Tensor(0, (2,), (2,))}, "does not lie in its storage"),
    "an offset below 0": ({"a": Tensor(0, (2,), (1,), -1)}, "whose storage, offset, size or stride is none"),
    "a size below 0": ({"a": Tensor(0, (-2,), (1,))}, "whose storage, offset, size or stride is none"),
    "a stride below 0": ({"a": Tensor(0, (2,), (-1,), 1)}, "whose storage, offset, size or stride is none"),
    "no stride": ({"a": Tensor(0, (2,), ())}, "does not lie in its storage"),
    "repeated": ({"a": Tensor(0, (2**40,), (0,))}, "does not lie in its storage of 2"),
    "huge": ({"a": Tensor(0, (2**62, 2**62), (1, 1))}, "does not lie in its storage of 2"),
    "too many dimensions": ({"a": Tensor(0, (1,) * 33, (1,) * 33)}, "size or stride is none"),
}  # fmt: skip


@pytest.mark.parametrize("form", [lambda *given: zipped(members(*given)), legacy])
@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_state_dict_says_what_it_is(case, form, tmp_path):
    value, message = OTHERS[case]
    storages = [("f4", np.array([1, 2]))]
    if form is legacy and "Tensor" not in repr(value):
        storages = []
    (tmp_path / "a.pth").write_bytes(form(value, storages))
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path / 'a.pth'))}: it.*{message}") as found:
        sn.load(tmp_path / "a.pth")
    assert "\n" not in str(found.value) and "torch.save(model.state_dict(), path)" in str(found.value)


PLACES, NUMBERS = tensors(STATE)
PARTS = members(PLACES, NUMBERS)
TWICE = program({"a": Tensor(1, (2,), (1,)), "b": Tensor(1, (2,), (1,))}, NUMBERS)
TWICE = b"IntStorage".join(TWICE.rsplit(b"FloatStorage", 1))


def exchanged(k, data):
    """The file with other bytes in its k-th member."""
    return zipped([*PARTS[:k], (PARTS[k][0], data), *PARTS[k + 1 :]])


FORGED = {
    "compressed": (zipped(PARTS, zipfile.ZIP_DEFLATED), "a member is compressed"),
    "a program": (zipped([*PARTS, ("archive/constants.pkl", b"")]), r"it is a program \(TorchScript\)"),
    "another member": (zipped([*PARTS, ("archive/code.py", b"")]), "has a member 'code.py', which torch.save"),
    "another folder": (zipped([*PARTS, ("other/data/0", b"")]), "it has no data.pkl"),
    "no data.pkl": (zipped(PARTS[1:]), "it has no data.pkl"),
    "a storage missing": (zipped(PARTS[:2] + PARTS[3:]), "it has no storage '0' of 24 numbers"),
    "a storage longer": (exchanged(2, bytes(100)), "it has no storage '0' of 24 numbers"),
    "an order that is none": (exchanged(1, b"middle"), "its byteorder is b'middle'"),
    "a large pickle": (exchanged(0, bytes(2**22 + 1)), "its data.pkl has more than 4,194,304 bytes"),
    "cut": (WHOLE[:-100], "not a zip file"),
    "legacy, cut": (OLD[:-1], "it is longer or shorter than its storages"),
    "legacy, longer": (OLD + b"\0", "it is longer or shorter than its storages"),
    "legacy, another version": (OLD.replace(b"M\xe9\x03", b"M\xea\x03"), "does not have version 1001"),
    "legacy, another length": (OLD[:-12] + b"\3" + OLD[-11:], "it has no storage '4' of 2 numbers"),
    "a whole model": (exchanged(0, b"ctorchvision.models\nResNet\n)R."), "refers to 'torchvision.models.ResNet', which is"),
    "a storage of two classes": (exchanged(0, TWICE), "it has a storage of two classes or lengths"),
    "legacy, of two classes": (legacy({}, NUMBERS, pickle=TWICE), "it has a storage of two classes or lengths"),
    "a pickle": (b"\x80\x04N.", "it is a pickle, which is read only in the files of torch.save"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_file_is_refused_for_its_reason(name, tmp_path):
    data, message = FORGED[name]
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path / 'a.pth'))}.*{message}"):
        sn.load(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="a member is there twice"):
        torch_file.decode(zipped([*PARTS, PARTS[3]]))


def test_a_forged_size_is_refused_before_memory_is_asked_for():
    entry = WHOLE.rindex(b"PK\1\2", 0, WHOLE.rindex(b"archive/data/4"))
    huge = (0xFFFFFFF0).to_bytes(4, "little")
    files = [
        WHOLE[: entry + 20] + huge + huge + WHOLE[entry + 28 :],
        zipped(members({"a": Tensor(0, (2**28,), (0,))}, [("f4", np.ones(2))])),
        zipped(members({"a": Tensor(0, (2**28,), (1,))}, [("f4", np.broadcast_to(np.float32(1), 2**28)[:2])])),
    ]
    for data in files:
        tracemalloc.start()
        with pytest.raises(ValueError, match="larger than the file|does not lie"):
            torch_file.decode(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20


# Hostile files -----------------------------------------------------------------------------------------------------------

WATCHED = ("os.", "subprocess.", "exec", "pickle.", "shutil.", "socket.", "ctypes.", "import")
seen: list = []


def watch(event, args):
    """An audit hook: what Python would do that reading numbers has no need of."""
    if seen and event.startswith(WATCHED) and event not in ("os.listdir", "os.scandir"):
        seen.append((event, str(args)[:80]))


sys.addaudithook(watch)


class Exploit:
    def __reduce__(self):
        return os.system, ("touch executed-by-a-pickle",)


def edited(data, rng):
    """Some bytes overwritten, inserted, removed, zeroed, repeated or swapped."""
    a, b = sorted(rng.integers(0, len(data) + 1, 2))
    b = min(b, a + rng.integers(1, 40))
    noise = rng.bytes(int(b - a) + 1)
    return [
        data[:a] + noise + data[a + len(noise) :], data[:a] + noise + data[a:], data[:a] + data[b:],
        data[:a] + bytes(b - a) + data[b:], data[:b] + data[a:b] + data[b:], data[b:] + data[:b], data[:a],
    ][rng.integers(7)]  # fmt: skip


def hostile(rng):
    """(bytes, what it must be if it is read; None: any dict of arrays no larger than the file)."""
    kind = rng.integers(7)
    parts = [list(part) for part in PARTS]
    if kind < 2:  # damage: checked by sums
        return edited(WHOLE, rng), content(STATE)
    if kind == 2:  # damage where there are no sums
        return edited(OLD, rng), None
    if kind == 3:  # another pickle with every sum right
        parts[0][1] = edited(parts[0][1], rng)
        return zipped(parts), None
    if kind == 4:  # a program
        call = pickle.dumps(Exploit(), int(rng.integers(0, 6)))
        at = rng.integers(2, len(parts[0][1]))
        whole = [call, parts[0][1][:at] + call[2:-1] + parts[0][1][at:], parts[0][1][:-1] + call]
        parts[0][1] = whole[rng.integers(3)]
        return (zipped(parts) if rng.integers(2) else legacy(PLACES, NUMBERS, pickle=parts[0][1])), None
    if kind == 5:  # tensors anywhere

        def many():
            return tuple(int(n) for n in rng.choice([0, 1, 2, 3, 5, 24, 25, 2**31, 2**62], rng.integers(0, 4)))

        state = {"a": Tensor(int(rng.integers(5)), many(), many(), int(rng.choice([0, 1, 23, 24, 2**40])))}
        return zipped(members(state, NUMBERS)), None
    change = rng.integers(4)  # members gone, twice, compressed, of other lengths
    k = rng.integers(len(parts))
    if change == 0:
        del parts[k]
    elif change == 1:
        parts.append(parts[k])
    elif change == 2:
        parts[k][1] = parts[k][1] + bytes(rng.integers(1, 2000))
    return zipped(parts, zipfile.ZIP_DEFLATED if change == 3 else zipfile.ZIP_STORED), content(STATE)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_files_are_refused_in_a_sentence_or_read_right_and_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, path, counts = np.random.default_rng(17), tmp_path / "a.pth", {"refused": 0, "read": 0}
    monkeypatch.setattr("scratchnet.training.archive.read_regular", lambda path: data)
    for trial in range(HOSTILE):
        data, wanted = hostile(rng)
        seen[:] = ["watching"]
        try:
            found = sn.load(path)
        except CheckpointError as error:
            counts["refused"] += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error), trial
        else:
            counts["read"] += 1
            assert all(type(key) is str and type(array) is np.ndarray for key, array in found.items()), trial
            assert sum(array.nbytes for array in found.values()) <= 2 * len(data) * max(1, len(found)), trial
            assert wanted is None or content(found) == wanted, (trial, "read, with another content and no error")
        finally:
            events, seen[:] = seen[1:], []
        assert not events, (trial, events)
    assert not list(tmp_path.iterdir()) and counts["refused"] > 0.6 * HOSTILE and counts["read"] > 0.02 * HOSTILE
    print(counts)


def test_the_hook_sees_what_a_pickle_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen[:] = ["watching"]
    pickle.loads(pickle.dumps(Exploit()))
    events, seen[:] = seen[1:], []
    assert any(event == "os.system" for event, _ in events) and (tmp_path / "executed-by-a-pickle").exists()


# Beside PyTorch ----------------------------------------------------------------------------------------------------------


def saved(torch, value, new=True):
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def as_arrays(torch, state):
    return {k: (v.float() if v.dtype == torch.bfloat16 else v).detach().numpy() for k, v in state.items()}


@pytest.mark.parametrize("new", [True, False])
def test_what_pytorch_writes_is_read_as_pytorch_reads_it(torch, new):
    base = torch.arange(24.0)
    state = {
        "plain": torch.randn(3, 4), "scalar": torch.tensor(7), "none": torch.zeros(0, 2), "turned": torch.randn(3, 4).t(),
        "rows": torch.randn(6, 5)[1:5:2, 1:], "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "shared": base[4:], "part": base[:6].view(2, 3), "parameter": torch.nn.Parameter(torch.randn(2)),
        **{str(dtype): torch.randint(0, 2, (3,)).to(dtype) for dtype in (
            torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32,
            torch.int64, torch.complex64, torch.complex128)},
    }  # fmt: skip
    found = torch_file.decode(saved(torch, state, new))
    wanted = as_arrays(torch, state)
    assert content(found) == content(wanted)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.Adam(network.parameters())
    network[2](torch.ones(4)).sum().backward()
    optimizer.step()
    run = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": 0.5, "done": False}
    for value in (network.state_dict(), run):
        assert content(torch_file.decode(saved(torch, value, new))) == content(as_arrays(torch, network.state_dict()))
    with pytest.raises(ValueError, match=r"refers to 'torch.nn.modules.container.Sequential', which is not among"):
        torch_file.decode(saved(torch, network, new))


def test_our_hand_made_files_are_pytorchs(torch):
    for data in (WHOLE, OLD):
        theirs = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        assert content(as_arrays(torch, theirs)) == content(STATE)


@pytest.mark.filterwarnings("ignore")
def test_forged_pickles_that_both_read_are_the_same(torch):
    rng, both = np.random.default_rng(3), 0
    for _ in range(HOSTILE):
        parts = [list(part) for part in PARTS]
        changed = bytearray(parts[0][1])
        changed[rng.integers(len(changed))] = rng.integers(256)
        parts[0][1] = bytes(changed)
        try:
            found = torch_file.decode(zipped(parts))
            theirs = torch.load(io.BytesIO(zipped(parts)), weights_only=True, map_location="cpu")
            theirs = theirs if isinstance(next(iter(theirs.values())), torch.Tensor) else theirs["model"]
        except Exception:  # one of the two refuses it
            continue
        both += 1
        assert content(as_arrays(torch, theirs)) == content(found)
    assert both > HOSTILE // 20
