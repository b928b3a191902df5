"""Devices and the memory order: what `device.py` and `array.py` promise."""

import os
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import Scale, picture, tree
from strategies import in_layout, layouts, normal, rngs, shapes

import scratchnet as sn
from scratchnet import array, device

# Devices --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # makes `import cupy` fail, whether it is installed or not


@pytest.fixture
def fake_cupy(monkeypatch):
    """A CuPy without a GPU, and an array of it."""

    class ndarray:
        shape, ndim, size, dtype = (2, 3, 4, 5), 4, 120, np.dtype(np.float64)

    module = types.SimpleNamespace(ndarray=ndarray, cuda=types.SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


WITHOUT_CUPY = (
    r"^device 'cuda' needs CuPy, which cannot be imported \(.*\): "
    r"install the extra cuda12 or cuda13, or use device 'cpu'$"
)


def test_cuda_without_cupy_is_one_line_that_names_the_extra(no_cupy):
    net, x = tree(), picture()
    arrays = net.state_dict()
    for attempt in (
        lambda: net.to("cuda"), lambda: sn.to_device(net, "cuda"), lambda: sn.to_device(x, "cuda"),
        lambda: device.resolve_device("cuda"),
    ):  # fmt: skip
        with pytest.raises(sn.DeviceError, match=WITHOUT_CUPY) as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert caught.value.__suppress_context__  # no "during handling of the above" before it
    assert all(net.state_dict()[name] is value for name, value in arrays.items())


def test_a_cupy_that_does_not_load_is_one_line_with_the_cause(monkeypatch):
    page = (
        f"{'=' * 64}\nFailed to import CuPy.\n\nOriginal error:\n  ImportError: libcublas.so.12 is missing\n{'=' * 64}"
    )

    class Broken:
        def find_spec(self, name, *_):
            if name == "cupy":
                raise ImportError(page)

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(
        sn.DeviceError, match=r"imported \(ImportError: libcublas.so.12 is missing\): install"
    ) as caught:
        device.resolve_device("cuda")
    assert "\n" not in str(caught.value)


def test_cuda_without_a_gpu_says_so(fake_cupy):
    message = "^device 'cuda' needs an NVIDIA GPU with its driver, and CuPy finds none: use device 'cpu'$"
    with pytest.raises(sn.DeviceError, match=message):
        sn.to_device(picture(), "cuda")
    with pytest.raises(sn.DeviceError, match=message):
        device.resolve_device("cuda")
    assert device.resolve_device("auto") == "cpu"


def test_resolve_device(no_cupy, monkeypatch):
    assert device.resolve_device("cpu") == "cpu"
    assert device.resolve_device("auto") == "cpu"
    with pytest.raises(ValueError, match="^device must be 'auto', 'cpu' or 'cuda', got 'gpu'$"):
        device.resolve_device("gpu")
    monkeypatch.setattr(device, "import_cupy", lambda: None)  # as on a machine where it works
    assert device.resolve_device("auto") == device.resolve_device("cuda") == "cuda"


@pytest.mark.parametrize(
    "may_use, there, number, sees",
    [
        (None, 4, 2, "2"),
        (None, 2, 5, "1"),
        (None, 1, 3, None),
        (None, 0, 1, None),
        ("3,GPU-7", 8, 1, "GPU-7"),
        ("3,5,6", 8, 3, "3"),
        ("5", 8, 2, "5"),
    ],
)
def test_each_rank_sees_one_card(may_use, there, number, sees, monkeypatch):
    monkeypatch.setattr(device.glob, "glob", lambda pattern: [f"/dev/nvidia{k}" for k in range(there)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is set back afterwards
    os.environ.pop("CUDA_VISIBLE_DEVICES")
    if may_use:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", may_use)
    device.one_card(number)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == sees


def test_to_the_cpu_from_the_cpu_moves_nothing():
    net, x = tree(), picture()
    arrays = net.state_dict()
    assert net.to("cpu") is net and sn.to_device(net, "cpu") is net and sn.to_device(x, "cpu") is x
    assert all(net.state_dict()[name] is value for name, value in arrays.items())


@pytest.mark.parametrize("device", ["gpu", "cuda:0", "auto", None])
def test_another_device_is_refused(device):
    message = rf"^device must be 'cpu' or 'cuda', got {device!r}$"
    with pytest.raises(ValueError, match=message):
        sn.to_device(picture(), device)
    with pytest.raises(ValueError, match=message):
        tree().to(device)


def test_another_device_is_refused_by_a_module_without_arrays_too():
    with pytest.raises(ValueError, match="^device must be 'cpu' or 'cuda', got 'gpu'$"):
        sn.ReLU().to("gpu")


def test_mixed_array_modules_are_named_with_the_way_out(fake_cupy):
    x = fake_cupy.ndarray()
    assert device.get_array_module(x) is fake_cupy and device.is_array(x) and device.device_of(x) == "cuda"
    message = (
        r"^0 Scale: x is on cuda and the parameters are on cpu: move one with sn\.to_device\(x, 'cpu'\) "
        r"or module\.to\('cuda'\)$"
    )
    with pytest.raises(TypeError, match=message):
        sn.Sequential(Scale(3))(x)
    x.shape, x.ndim = (2, 3), 2
    with pytest.raises(
        TypeError, match=r"^CrossEntropyLoss: labels are on cpu and logits on cuda: move the labels with"
    ):
        sn.CrossEntropyLoss()(x, np.array([0, 1]))


# Memory order ---------------------------------------------------------------------------------------------------------

ANY_SHAPE = st.one_of(shapes(), shapes().map(lambda shape: shape[:2]), shapes().map(lambda shape: shape[:3]))


@given(rngs(), ANY_SHAPE, layouts(), st.sampled_from([np.float32, np.float64, np.complex128]))
def test_as_matrix_and_back_gives_x_again_and_leaves_it_alone(rng, shape, layout, dtype):
    x = in_layout(normal(rng, shape, dtype), layout)
    before = x.copy()
    rows = sn.as_matrix(x)
    assert rows.shape == (shape[1], x.size // shape[1]) and rows.dtype == dtype and rows.flags.c_contiguous
    for c in range(shape[1]):  # one row a channel, the batch innermost
        assert np.array_equal(rows[c], np.moveaxis(x[:, c], 0, -1).ravel())
    back = sn.as_images(rows, x)
    assert back.shape == shape and np.array_equal(back, x)
    maps = array.as_maps(x)
    assert maps.shape == (*shape[1:], shape[0]) and maps.flags.c_contiguous
    assert np.array_equal(sn.as_images(maps), x)
    assert np.array_equal(x, before)


@given(rngs(), ANY_SHAPE)
def test_of_channel_major_the_matrix_is_a_view_and_otherwise_a_copy(rng, shape):
    x = in_layout(normal(rng, shape), "channel-major")
    assert np.shares_memory(sn.as_matrix(x), x) and np.shares_memory(array.as_maps(x), x)
    assert np.shares_memory(sn.as_images(sn.as_matrix(x), x), x)
    sliced = in_layout(normal(rng, tuple(size + 1 for size in shape)), "sliced")
    rows = sn.as_matrix(sliced)
    assert not np.shares_memory(rows, sliced)
    rows[...] = 0
    assert sliced.any()


def test_memory_order_by_hand():
    """Pictures 0 and 1 with channels a, b of one row of two pixels: memory reads a0 a0' a1 a1' b0 b0' b1 b1'."""
    x = np.array([[["a0", "a1"], ["b0", "b1"]], [["a0'", "a1'"], ["b0'", "b1'"]]]).reshape(2, 2, 1, 2)
    assert sn.as_matrix(x).tolist() == [["a0", "a0'", "a1", "a1'"], ["b0", "b0'", "b1", "b1'"]]


@given(rngs(), shapes())
def test_every_container_leaves_channel_major(rng, shape):
    x = normal(rng, shape)
    for net in (sn.Sequential(sn.ReLU()), sn.Residual(sn.ReLU()), sn.Residual()):
        y = net(x)
        assert array.as_maps(y).base is not None and np.shares_memory(sn.as_matrix(y), y)
        dx = net.backward(in_layout(normal(rng, shape), "contiguous"))
        assert np.shares_memory(sn.as_matrix(dx), dx)


def test_which_arrays_there_are():
    assert device.get_array_module(np.ones(2)) is np and device.get_array_module(np.float32(1)) is np
    assert device.is_array(np.ones(2)) and not device.is_array([1.0]) and not device.is_array(np.float64(1))
    assert device.same_kind(np.ones(2), np.ones(3)) is None
