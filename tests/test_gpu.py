"""On a GPU: what the stand-in shows on any machine, on CuPy itself. `pytest -m gpu`; elsewhere these tests are skipped.

With SCRATCHNET_REQUIRE_GPU=1 a machine without a GPU fails instead (`conftest.py`).
"""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_recorded
from conformance import ROWS, close, each_row
from device import TAKEN, held_in_bfloat16, held_to_the_cpu, on_the_host, train_on_a_few_shapes
from strategies import in_layout

import scratchnet as sn
from models import MobileNetV2
from scratchnet.array import to_device
from scratchnet.kernels.cuda import launch as cuda_launch
from scratchnet.kernels.cuda import rows
from scratchnet.training.checkpoint import load
from scratchnet.training.optim import SGD
from scratchnet.training.trainer import train_step

pytestmark = pytest.mark.gpu
HERE = Path(__file__).parent


@pytest.mark.parametrize("fast", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@each_row()
def test_the_conformance_table(case, dtype, fast):
    held_to_the_cpu(case, dtype, fast, 4 * case.row.ulps)  # a GPU's library may add up in any order


def train(device, dtype, batch=64, steps=3):
    rng = np.random.default_rng(4)
    model = MobileNetV2(10, 0.5, "cifar", dropout=0.2, dtype=dtype, rng=rng).to(device)
    criterion = sn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = SGD(model.named_parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    losses = []
    for _ in range(steps):
        x = in_layout(rng.standard_normal((batch, 3, 32, 32)).astype(dtype), "channel-major")
        labels = to_device(rng.integers(0, 10, batch), device)
        losses.append(train_step(model, criterion, optimizer, to_device(x, device), labels)[0])
    return [float(loss) for loss in losses], on_the_host(model.state_dict())


def test_training_is_that_of_the_cpu():
    losses, state = train("cuda", np.float64)
    want_losses, want = train("cpu", np.float64)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-8)
    close(state, want, 1e-6)


@pytest.mark.parametrize("batch", [64, 31])
def test_two_runs_have_the_same_bits(batch):
    first, second = (train("cuda", np.float32, batch) for _ in range(2))
    assert first[0] == second[0]
    assert all(first[1][name].tobytes() == second[1][name].tobytes() for name in first[1])


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in TAKEN], ids=lambda row: row.name)
def test_layers_compute_on_bfloat16(row):
    held_in_bfloat16(row, "train", 2 * TAKEN[row.name])


def test_the_program_stores_activations_in_bfloat16(tmp_path):
    assert train_on_a_few_shapes("--device", "cuda", "--precision", "bf16", "--out", str(tmp_path)) == 0


@pytest.mark.parametrize("form", ["float32", "tf32", "bfloat16"])
def test_a_recorded_step_has_the_bits_of_the_eager_one(form):
    with sn.use_tf32(form == "tf32"):
        want = test_recorded.train(False, stored=form == "bfloat16")
        assert not test_recorded.same_bits(test_recorded.train(True, stored=form == "bfloat16"), want)


def test_recordings_follow_the_batch_and_the_network():
    sizes = lambda step: 8 if step % 3 else 5  # noqa: E731
    options = {"sizes": sizes, "between": test_recorded.unfreeze}
    want = test_recorded.train(False, 16, **options)
    assert not test_recorded.same_bits(test_recorded.train(True, 16, **options), want)


def test_the_program_has_the_same_bits_recorded_and_not(tmp_path):
    kept = []
    for name, flags in {"recorded": [], "eager": ["--no-record"]}.items():
        arguments = ["--device", "cuda", "--epochs", "3", "--ema", "0.9", "--out", str(tmp_path / name), *flags]
        assert train_on_a_few_shapes(*arguments) == 0
        kept.append(load(tmp_path / name / "last.npz")[0])
    assert not test_recorded.same_bits(*kept)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_products_are_nvmaths(dtype):
    import cupy

    from scratchnet.kernels.cuda import products

    assert products.why_eager() is None
    rng = np.random.default_rng(2)
    a, b = (cupy.asarray(rng.standard_normal(size).astype(np.float32)) for size in ((37, 70), (50, 70)))
    want = a.get().astype(np.float64) @ b.get().T
    if dtype == "bfloat16":
        a, b = rows.narrow(a), rows.narrow(b)
    else:
        a, b = a.astype(dtype), b.astype(dtype)
    wide = "float64" if dtype == "float64" else "float32"
    total = cupy.ones((37, 50), wide)
    products.product(a, b.T, out=total)
    atol = 0.2 if dtype == "bfloat16" else 1e-4
    np.testing.assert_allclose(total.get(), want + 1, rtol=0, atol=atol)
    np.testing.assert_allclose(products.product(a, b.T, dtype=wide).get(), want, rtol=0, atol=atol)


def test_tf32_is_float32_to_ten_bits():
    from scratchnet.device import use_tf32

    exact, _ = train("cuda", np.float32, steps=1)
    use_tf32(True)
    try:
        rounded, _ = train("cuda", np.float32, steps=1)
    finally:
        use_tf32(False)
    np.testing.assert_allclose(rounded, exact, rtol=1e-2)


def test_the_stand_in_has_the_names_of_this_cupy(tmp_path, monkeypatch):
    make_names = importlib.import_module("make_names")
    monkeypatch.setattr(make_names, "NAMES", tmp_path / "names.json")
    make_names.main()
    here, kept = (json.loads(path.read_text()) for path in (tmp_path / "names.json", HERE / "cuda" / "names.json"))
    if here["version"] != kept["version"]:
        pytest.skip(f"names.json is of CuPy {kept['version']}, here is {here['version']}")
    assert here == kept


def test_every_instantiation_loads():
    import cupy

    for source in sorted({kernel.source for kernel in cuda_launch.declared().values()}):
        for dtype in ("float32", "float64", "bfloat16"):
            module = cuda_launch._module(cupy, source, dtype)
            for name in cuda_launch.instantiations(source, dtype):
                assert module.get_function(name).local_size_bytes == 0, f"{name} spills"


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    code = "import device; device.run_every_kernel()"
    environment = {"PYTHONPATH": f"{HERE}:{HERE / 'cuda'}:{HERE.parent}", "PATH": "/usr/bin:/bin"}
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
