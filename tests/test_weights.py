"""sn.save and sn.load, networks built from files, safetensors: what comes back is what was saved, or one sentence."""

import json
import os
import re
import struct
import sys
import tracemalloc

import numpy as np
import pytest
from runs import few_pictures, run
from snippets import block_with

import scratchnet as sn
from models import MobileNetV2
from scratchnet import weights
from scratchnet.program import data as program_data
from scratchnet.training import archive, checkpoint
from scratchnet.training.archive import CheckpointError

KINDS = ["npz", "safetensors"]


def network(dtype=np.float32, seed=0):
    """A small network of which no array is as it was made."""
    rng = np.random.default_rng(seed)
    model = sn.Sequential({"conv": sn.Conv2d(3, 4, 3, dtype=dtype), "norm": sn.BatchNorm2d(4, dtype=dtype)})
    for value in model.state_dict().values():
        value[...] = rng.integers(1, 100, value.shape) / 8
    return model


def content(state):
    return [(key, a.dtype.str, a.shape, a.tobytes()) for key, a in state.items()]


def require(kind):
    if kind == "safetensors":
        pytest.importorskip("safetensors")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_ones_own_comes_back_bit_for_bit(kind, dtype, tmp_path):
    require(kind)
    model, other = network(dtype), network(dtype, seed=1)
    sn.save(tmp_path / f"a.{kind}", model)
    found = sn.load(tmp_path / f"a.{kind}")
    assert sorted(content(found)) == sorted(content(model.state_dict()))
    other.load_state_dict(found)
    assert content(other.state_dict()) == content(model.state_dict())
    sn.save(tmp_path / f"b.{kind}", found)  # a state, and over and over
    sn.save(tmp_path / f"b.{kind}", found)
    assert sorted(content(sn.load(tmp_path / f"b.{kind}"))) == sorted(content(found))
    assert sorted(os.listdir(tmp_path)) == [f"a.{kind}", f"b.{kind}"]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_networks_give_equal_files(kind, tmp_path):
    require(kind)
    for name in "ab":
        sn.save(tmp_path / f"{name}.{kind}", network())
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_an_npz_is_a_checkpoint_with_a_sum(tmp_path):
    sn.save(tmp_path / "a.npz", network())
    arrays, header = checkpoint.load(tmp_path / "a.npz")
    assert set(arrays) == {f"model/{key}" for key in network().state_dict()} and "network" not in header
    data = (tmp_path / "a.npz").read_bytes()
    at = data.index(network().state_dict()["conv.weight"].tobytes())
    (tmp_path / "a.npz").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(CheckpointError, match="a.npz is not a whole checkpoint"):
        sn.load(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full_leaves_the_old_file(kind, tmp_path, monkeypatch):
    require(kind)
    path = tmp_path / f"a.{kind}"
    sn.save(path, network())
    before = path.read_bytes()

    def fail(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        sn.save(path, network(seed=1))
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_what_cannot_be_saved_is_a_sentence_and_makes_no_file(tmp_path):
    for name in ("a.pth", "a", "a.onnx"):
        with pytest.raises(
            ValueError, match=rf"save: expected a name that ends in .npz or .safetensors, got .*{name}'"
        ):
            sn.save(tmp_path / name, network())
    for wrong in ([1], 3, {1: np.ones(2)}):
        with pytest.raises(TypeError, match="save: expected a Module or a state"):
            sn.save(tmp_path / "a.npz", wrong)
    with pytest.raises(CheckpointError, match="array 'model/a' cannot be stored"):
        sn.save(tmp_path / "a.npz", {"a": np.array(["text"])})
    assert not os.listdir(tmp_path)


OTHER = {
    "empty": (b"", "it is empty"),
    "a PNG": (b"\x89PNG\r\n\x1a\n", "it is a PNG picture"),
    "a JPEG": (b"\xff\xd8\xff\xe0" + bytes(20), "it is a JPEG picture"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file, as Keras writes them, which is not read"),
    "gzip": (b"\x1f\x8b\x08", "it is compressed by gzip: unpack it first"),
    "one array": (b"\x93NUMPY\x01\x00", "it is one array, which numpy.load reads"),
    "a pickle": (b"\x80\x04N.", "it is a pickle, which is read only in the files of torch.save"),
    "text": (b"epoch,loss\n1,2\n", "its first bytes are those of no format that is read"),
    "no network": (archive.encode({"order": np.ones(2)}, {}), "it holds no network, but 'order'"),
}


@pytest.mark.parametrize("case", OTHER)
def test_something_else_is_named(case, tmp_path):
    data, message = OTHER[case]
    (tmp_path / "a.npz").write_bytes(data)
    for load in (sn.load, MobileNetV2.from_checkpoint):
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path / 'a.npz'))}: {message}"):
            load(tmp_path / "a.npz")


def test_numpys_own_npz_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", **network().state_dict())
    with pytest.raises(
        CheckpointError, match=r"it is NumPy's own .npz: load_state_dict\(numpy.load\(path\)\) takes it$"
    ):
        sn.load(tmp_path / "a.npz")
    network().load_state_dict(np.load(tmp_path / "a.npz"))


# A network from its file -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run with averaged weights, and the network at its end."""
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program_data, "draw_shapes", few_pictures)
        assert run("--out", out, "--epochs", 1, "--ema", "0.5", "--dropout", "0.25") == 0
    return out


@pytest.mark.parametrize("name", ["best.npz", "last.npz"])
def test_a_runs_checkpoint_gives_the_weights_that_it_was_tested_with(trained, name):
    arrays, _ = checkpoint.load(trained / name)
    state = sn.load(trained / name)
    wanted = {
        k.removeprefix("average/"): v for k, v in arrays.items() if k.startswith("average/") and "updates" not in k
    }
    assert sorted(content(state)) == sorted(content(wanted)) and len(state) == 314
    model = MobileNetV2.from_checkpoint(trained / name)
    assert model.config() == {"num_classes": 10, "width_mult": 0.1, "variant": "cifar", "dropout": 0.25}
    assert not model.training and all(np.array_equal(value, state[key]) for key, value in model.state_dict().items())
    MobileNetV2(10, 0.1).load_state_dict(state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("classes", "width", "variant"), [(7, 0.1, "cifar"), (3, 0.13, "imagenet"), (4, 0.1, "blog")])
def test_a_saved_mobilenet_is_built_again(classes, width, variant, dtype, kind, tmp_path):
    require(kind)
    model = MobileNetV2(classes, width, variant, 0.125, dtype=dtype)
    path = tmp_path / f"a.{kind}"
    sn.save(path, model)
    again = MobileNetV2.from_checkpoint(path)
    assert again.config() == model.config() and type(again) is MobileNetV2
    assert content(again.state_dict()) == content(model.state_dict())
    x = np.random.default_rng(0).standard_normal((2, 3, 33, 40)).astype(dtype)
    assert np.array_equal(again(x), model.eval()(x))


@pytest.mark.parametrize("width", [0.1, 0.35, 0.77, 1.4])
@pytest.mark.parametrize("variant", ["imagenet", "blog"])
def test_without_a_header_the_shapes_say_which_network_it_is(variant, width, tmp_path):
    model = MobileNetV2(6, width, variant)
    sn.save(tmp_path / "a.npz", model.state_dict())
    again = MobileNetV2.from_checkpoint(tmp_path / "a.npz")
    assert again.config() == model.config() and content(again.state_dict()) == content(model.state_dict())


def test_a_network_that_says_nothing_about_itself_or_another_is_none(tmp_path):
    sn.save(tmp_path / "a.npz", network())
    with pytest.raises(
        CheckpointError, match="a.npz holds no such network: its arrays do not have the sizes of a Mobile"
    ):
        MobileNetV2.from_checkpoint(tmp_path / "a.npz")

    class Mine(MobileNetV2):
        pass

    sn.save(tmp_path / "a.npz", Mine(10, 0.1))
    with pytest.raises(CheckpointError, match="a.npz holds no such network: it holds a Mine, no MobileNetV2"):
        MobileNetV2.from_checkpoint(tmp_path / "a.npz")
    assert type(Mine.from_checkpoint(tmp_path / "a.npz")) is Mine


FORGED = {
    "wide": ({"width_mult": 90}, "its arrays do not have the sizes of a MobileNetV2 .*'width_mult': 90"),
    "wider than any": (
        {"width_mult": 1e9},
        "'width_mult' in 'arguments' in 'network' in its header is .*, expected a number",
    ),
    "no width": ({"width_mult": None}, "'width_mult' in .* is None, expected a number"),
    "an object": ({"variant": {"__reduce__": "os.system"}}, "'variant' in .* expected 'imagenet' or 'cifar' or 'blog'"),
    "another variant": ({"variant": "blog"}, "its arrays do not have the sizes"),
    "always dropped": ({"dropout": 1}, "'dropout' in .* is 1, expected a number from 0 to 0.999"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_header_is_checked_before_anything_is_made(case, tmp_path):
    changes, message = FORGED[case]
    model = MobileNetV2(10, 0.1)
    header = {"network": {"name": "MobileNetV2", "arguments": model.config() | changes}}
    path = tmp_path / "a.npz"
    checkpoint.save(path, {f"model/{key}": value for key, value in model.state_dict().items()}, header)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))} holds no such network: .*{message}"):
        MobileNetV2.from_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23
    for network in ({}, [], {"name": 3}, {"name": "MobileNetV2"}, {"name": "MobileNetV2", "arguments": []}):
        checkpoint.save(
            path, {f"model/{key}": value for key, value in model.state_dict().items()}, {"network": network}
        )
        with pytest.raises(CheckpointError, match="holds no such network: "):
            MobileNetV2.from_checkpoint(path)


def test_what_the_guide_saves_comes_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block_with("sn.save("), names)
    assert content(names["again"].state_dict()) == content(names["model"].state_dict())
    assert os.listdir() == ["network.npz"] and not names["again"].training


# safetensors -------------------------------------------------------------------------------------------------------------


def by_hand(entries, metadata=None):
    """A safetensors file of name -> (dtype, shape, bytes)."""
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, (dtype, shape, numbers) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(numbers)]}
        data += numbers
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_every_dtype_is_read_and_bfloat16_as_float32(tmp_path):
    pytest.importorskip("safetensors")
    bits = np.array([0, 0x3F80, 0xC049, 0x7F7F], np.uint16)
    entries = {
        name: (name, [2, 2], np.arange(4).astype(dtype).tobytes())
        for name, dtype in weights.safetensors_file.DTYPES.items()
    }
    entries |= {"BF16": ("BF16", [4], bits.tobytes()), "count": ("I64", [], struct.pack("<q", 2**40 + 1))}
    (tmp_path / "a.safetensors").write_bytes(by_hand(entries, {"other": "writer"}))
    found = sn.load(tmp_path / "a.safetensors")
    assert set(found) == set(entries) and found["count"] == 2**40 + 1 and found["count"].shape == ()
    assert found["BF16"].dtype == np.float32 and (found["BF16"].view(np.uint32) >> 16).tolist() == bits.tolist()
    for name, dtype in weights.safetensors_file.DTYPES.items():
        if name != "BF16":
            assert found[name].tolist() == np.arange(4).astype(dtype).reshape(2, 2).tolist()
            assert found[name].dtype == np.dtype(dtype) and found[name].flags.writeable
    (tmp_path / "a.safetensors").write_bytes(by_hand({"a": ("F8_E4M3", [2], b"ab")}))
    with pytest.raises(CheckpointError, match="'a' is of dtype F8_E4M3, which NumPy does not have"):
        sn.load(tmp_path / "a.safetensors")


def test_the_package_and_pytorch_read_what_is_saved(tmp_path):
    numpy_side = pytest.importorskip("safetensors.numpy")
    model = network()
    state = model.state_dict() | {
        "half": np.ones(3, np.float16),
        "turned": np.arange(6.0).reshape(2, 3).T,
        "big": np.ones(2, ">f4"),
    }
    sn.save(tmp_path / "a.safetensors", state)
    found = numpy_side.load_file(tmp_path / "a.safetensors")
    assert set(found) == set(state) and all(np.array_equal(found[key], state[key]) for key in state)
    assert all(found[key].dtype == state[key].dtype.newbyteorder("=") for key in state)
    with pytest.raises(CheckpointError, match="array 'a' cannot be stored: safetensors has no complex128"):
        sn.save(tmp_path / "a.safetensors", {"a": np.ones(2, complex)})
    pytest.importorskip("torch")
    theirs = pytest.importorskip("safetensors.torch").load_file(tmp_path / "a.safetensors")
    assert all(np.array_equal(theirs[key].numpy(), state[key]) for key in state)


def test_damage_is_a_sentence(tmp_path):
    pytest.importorskip("safetensors")
    sn.save(tmp_path / "a.safetensors", MobileNetV2(3, 0.1))
    whole, rng = (tmp_path / "a.safetensors").read_bytes(), np.random.default_rng(0)
    end = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for trial in range(300):
        data = bytearray(whole)
        data[rng.integers(end)] = rng.integers(256)  # the numbers have no sum
        (tmp_path / "a.safetensors").write_bytes(bytes(data) if trial % 3 else whole[: rng.integers(len(whole))])
        try:
            assert all(type(array) is np.ndarray for array in sn.load(tmp_path / "a.safetensors").values())
        except CheckpointError as error:
            refused += 1
            assert "a.safetensors" in str(error) and "\n" not in str(error)
    assert refused > 150


def test_without_the_package_it_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(by_hand({"a": ("F32", [1], bytes(4))}))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    message = "safetensors files need the package of that name: pip install safetensors$"
    with pytest.raises(CheckpointError, match=f"a.safetensors: {message}"):
        sn.load(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=f"^{message}"):
        sn.save(tmp_path / "b.safetensors", network())
    assert os.listdir(tmp_path) == ["a.safetensors"]
