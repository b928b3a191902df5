"""What is checked before a kernel is launched: kind, dtype, memory order and alignment of arrays, range of numbers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import standin
from hostmodule import has_compiler

from scratchnet.kernels.cuda import launch as cuda_launch

pytestmark = pytest.mark.skipif(not has_compiler(), reason="g++ is not installed")


@pytest.fixture(autouse=True)
def in_cupys_place(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", standin)


def on_device(shape, dtype=np.float32, offset=0):
    """An array on the device that begins `offset` numbers behind a multiple of 64 bytes."""
    memory = np.zeros(int(np.prod(shape)) + 64 + offset, dtype)
    start = -memory.ctypes.data % 64 // memory.itemsize + offset
    return standin.ndarray(memory[start : start + int(np.prod(shape))].reshape(shape))


def relu6(x, y, m, v=1, grid=(1, 1)):
    cuda_launch.launch("relu6_forward", (v,), grid, x, y, m)


def test_a_launch_computes():
    x, y = on_device((8,)), on_device((8,))
    x[...] = 7
    relu6(x, y, 8, v=4)
    assert y.get().tolist() == [6] * 8


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda: (on_device((8,)), np.zeros(8, "f4"), 8), TypeError, "y must be an array on the device, got ndarray"),
        (
            lambda: (on_device((8,)), on_device((8,), np.float64), 8),
            TypeError,
            "y must be of dtype float32, got float64",
        ),
        (lambda: (on_device((4, 2)).T, on_device((8,)), 8), ValueError, "x must be C-contiguous, got strides"),
        (lambda: (on_device((8,)), on_device((8, 2))[:, 0], 8), ValueError, "y must be C-contiguous, got strides"),
        (lambda: (on_device((8,)), on_device((8,)), 1 << 31), ValueError, "m must fit into 32 bits, got 2147483648"),
        (lambda: (on_device((8,)), on_device((8,)), np.int64(8)), TypeError, "m must be a number, got int64"),
        (lambda: (on_device((8,)), on_device((8,)), on_device(())), TypeError, "m must be a number, got ndarray"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, error, message):
    with pytest.raises(error, match=f"^relu6_forward: {message}"):
        relu6(*arguments())


def test_another_number_of_arguments_is_refused():
    with pytest.raises(TypeError, match="relu6_forward: takes 3 arguments, got 2"):
        cuda_launch.launch("relu6_forward", (1,), (1, 1), on_device((8,)), on_device((8,)))


def test_an_array_that_is_not_aligned_is_refused_where_words_are_loaded():
    x, y = on_device((8,), offset=1), on_device((8,))
    with pytest.raises(ValueError, match="relu6_forward: x must begin at a multiple of 16 bytes"):
        relu6(x, y, 8, v=4)
    relu6(x, y, 8, v=1)


@pytest.mark.parametrize(
    ("m", "offset", "dtype", "count"),
    [(8, 0, "f4", 4), (8, 1, "f4", 1), (6, 0, "f4", 1), (6, 0, "f8", 2), (7, 0, "f8", 1), (8, 4, "f4", 4)],
)
def test_words_are_loaded_where_every_row_begins_at_one(m, offset, dtype, count):
    assert cuda_launch.vector(m, on_device((3, m), np.dtype(dtype), offset)) == count


def test_a_number_gets_the_width_of_the_parameter():
    parameters = {p.name: p for p in cuda_launch.declared()["combine_moments"].arguments}
    for name, dtype, kind in (
        ("eps", "float32", np.float32),
        ("eps", "float64", np.float64),
        ("blocks", "float64", np.int32),
    ):
        value = cuda_launch._checked("combine_moments", parameters[name], parameters[name].of(dtype), 3, 1, standin)
        assert type(value) is kind and value == 3


def test_what_the_sources_declare_is_read():
    kernel = cuda_launch.declared()["take_batch"]
    assert (kernel.source, kernel.template) == ("augment", ())
    assert [(p.name, p.pointer, p.dtype) for p in kernel.arguments] == [
        ("images", True, "uint8"), ("draws", True, "int32"), ("scale", True, "sum"), ("shift", True, "sum"),
        ("out", True, "T"), ("h", False, "int32"), ("w", False, "int32"), ("n", False, "int32"),
    ]  # fmt: skip
    assert cuda_launch.declared()["normalise"].template == ("V", "CLIP")
    assert cuda_launch.declared()["cross_entropy_forward"].arguments[1].dtype == "int64"


def test_what_a_table_has_for_columns_is_read():
    kernel = cuda_launch.declared()["track_all"]
    assert kernel.rows == 64 and [(p.name, p.pointer, p.dtype) for p in kernel.arguments[1:6:2]] == [
        ("running_var", True, "sum"), ("mean", True, "sum"), ("momentum", False, "sum"),
    ]  # fmt: skip
    tables = [name for name, kernel in cuda_launch.declared().items() if kernel.rows]
    assert tables == ["add_to_all", "narrow_all", "track_all"]
    for name in tables:  # CUDA gives the arguments of a kernel 4 KB
        assert max(cuda_launch.layout(name, dtype).itemsize for dtype in ("float32", "float64")) <= 4096


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (lambda x: [(x, x, 8), (x, on_device((8,), np.float64), 8)], TypeError, "term must be of dtype float32, got f"),
        (lambda x: [(x, on_device((4, 2)).T, 8)], ValueError, "term must be C-contiguous"),
        (lambda x: [(x, np.zeros(8, "f4"), 8)], TypeError, "term must be an array on the device, got ndarray"),
        (lambda x: [(x, x, 1 << 31)], ValueError, "size must fit into 32 bits"),
    ],
)
def test_a_wrong_row_is_refused(rows, error, message):
    with pytest.raises(error, match=f"^add_to_all: {message}"):
        cuda_launch.launch_rows("add_to_all", rows(on_device((8,))))


def test_instantiations():
    assert cuda_launch.instantiations("optimizer", "float64") == [
        "sgd<double>", "sgd_momentum<double, false>", "sgd_momentum<double, true>", "rmsprop<double, false, false>",
        "rmsprop<double, false, true>", "rmsprop<double, true, false>", "rmsprop<double, true, true>", "adam<double>",
    ]  # fmt: skip
    assert "normalise<bfloat16, 8, true>" in cuda_launch.instantiations("norm", "bfloat16")


@pytest.mark.parametrize(
    ("items", "channels", "want"), [(1, 1, 1), (256, 1, 1), (257, 1, 2), (1 << 30, 1, 2048), (1 << 30, 100, 21)]
)
def test_grids_depend_on_the_shape_alone(items, channels, want):
    assert cuda_launch.blocks(items, channels) == (want, channels)


@pytest.mark.parametrize("required", [True, False])
def test_without_a_gpu_its_tests_are_skipped_or_the_run_fails(required):
    """A run that was to use a GPU must not look like a success without one."""
    environment = {**os.environ, "SCRATCHNET_REQUIRE_GPU": str(int(required)), "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "two_runs", "tests/test_gpu.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])
    assert done.returncode == (3 if required else 0), done.stdout + done.stderr
    assert "device 'cuda' needs" in done.stdout + done.stderr
