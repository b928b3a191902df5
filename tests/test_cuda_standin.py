"""The whole library on a stand-in for CuPy: the same values as on NumPy, and nothing that CuPy refuses or waits for.

The kernels that run here are the real ones, as host code (`tests/cuda/`).
"""

import copy
import sys

import numpy as np
import pytest
from hostmodule import has_compiler
from test_conformance import EPS32, Case, close, each_row, step

import scratchnet as sn
from scratchnet.array import to_device
from scratchnet.kernels import gpu

pytestmark = pytest.mark.skipif(not has_compiler(), reason="g++ is not installed")


@pytest.fixture(autouse=True)
def standin(monkeypatch):
    """The stand-in in CuPy's place, and grids so small that the loops in the kernels wrap."""
    import standin

    monkeypatch.setitem(sys.modules, "cupy", standin)
    monkeypatch.setattr(gpu, "THREADS", 32)
    monkeypatch.setattr(gpu, "BLOCKS", 6)
    monkeypatch.setattr(gpu, "REDUCING_BLOCKS", 6)
    standin.counts.clear()
    yield standin
    standin.counts.clear()


@pytest.fixture
def case(request):
    return Case(*request.param)


def on_the_host(values):
    return {name: to_device(value, "cpu") for name, value in values.items()}


def step_on_the_device(module, x, dy):
    """As `test_conformance.step`, on the device."""
    module = copy.deepcopy(module).to("cuda")
    x, dy = to_device(x, "cuda"), to_device(dy, "cuda") if dy.ndim else float(dy)
    module.zero_grad()
    arrays = {"y": module(x), "dx": module.backward(dy)}
    arrays |= {f"gradient of {name}": parameter.grad for name, parameter in module.named_parameters()}
    return on_the_host(arrays | module.state_dict())


@pytest.mark.parametrize("fast", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@each_row()
def test_the_conformance_table(case, dtype, fast):
    module, x, dy = case.build(dtype)
    sn.use_kernels(fast)
    got = step_on_the_device(module, x, dy)
    sn.use_kernels(False)
    close(got, step(*case.build(np.float64)), 1e-11 if dtype == np.float64 else case.row.ulps * EPS32)
    assert {name: value.dtype for name, value in got.items()} == {
        name: np.int64 if name.endswith("num_batches_tracked") else dtype for name in got
    }
