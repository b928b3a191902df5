"""Suite-wide: hypothesis profiles, and two threads, so that slabs that share what they should not are seen.

HYPOTHESIS_PROFILE=dev        20 drawn cases a property (the default)
HYPOTHESIS_PROFILE=ci         100, the same ones every time (the default where CI is set)
HYPOTHESIS_PROFILE=nightly    5,000, new ones every time, failures kept in .hypothesis
HYPOTHESIS_PROFILE=mutation   20, the same ones every time, not shrunk: that it fails is all (mutation.py sets it)

SCRATCHNET_REQUIRE_GPU=1      ends the run with exit code 3 where there is no GPU, instead of skipping the tests marked gpu
"""

import os
import sys

import pytest
from hypothesis import Phase, settings
from hypothesis.database import DirectoryBasedExampleDatabase

import scratchnet as sn
from scratchnet import kernels
from scratchnet.device import import_cupy
from scratchnet.kernels.cpu.convolve import geometry_of
from scratchnet.kernels.cuda import launch

pytest.register_assert_rewrite(
    "cifar_files", "conformance", "device", "runs"
)  # helpers whose assertions are to say what was wrong

settings.register_profile("dev", max_examples=20, deadline=None)
settings.register_profile(
    "mutation", max_examples=20, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, database=None)
settings.register_profile(
    "nightly", max_examples=5000, deadline=None, database=DirectoryBasedExampleDatabase(".hypothesis/examples")
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


def pytest_sessionstart():
    """Forget geometries: a mutant is forked from a process that made them already, and is to make its own."""
    geometry_of.cache_clear()


def why_no_gpu():
    """Why the tests marked gpu cannot run here, or None: CuPy can be imported without a GPU, so that is no sign of one."""
    try:
        import_cupy()
    except sn.DeviceError as error:
        return str(error)
    return None


def pytest_collection_modifyitems(items):
    """Skip the tests marked gpu where there is none, or end the run where one is required."""
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    required = os.environ.get("SCRATCHNET_REQUIRE_GPU") == "1"
    if not wanted and not required:
        return
    why = why_no_gpu()
    if why and required:
        pytest.exit(f"SCRATCHNET_REQUIRE_GPU=1: {why}", returncode=3)
    for item in wanted if why else ():
        item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(autouse=True)
def two_threads():
    """Every test starts on two threads, whatever a test before it set."""
    if sn.get_num_threads() != 2:
        sn.set_num_threads(2)


@pytest.fixture(autouse=True)
def all_kernels():
    """Every test starts, and leaves, with kernels allowed."""
    sn.use_kernels(True)
    yield
    sn.use_kernels(True)


@pytest.fixture(scope="session")
def torch():
    """PyTorch; the test is skipped where it is not installed."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # on pictures this small a second thread only waits
    return torch


@pytest.fixture
def standin(monkeypatch):
    """The stand-in in CuPy's place, and grids so small that the loops in the kernels wrap."""
    import standin

    monkeypatch.setitem(sys.modules, "cupy", standin)
    for name, size in (("THREADS", 32), ("BLOCKS", 6), ("REDUCING_BLOCKS", 6)):
        monkeypatch.setattr(launch, name, size)
    standin.counts.clear()
    yield standin
    standin.counts.clear()


@pytest.fixture
def gemm(standin, monkeypatch):
    """The stand-in with nvmath-python beside it."""
    from scratchnet.kernels.cuda import products

    binding = standin.Binding()
    monkeypatch.setattr(products, "_binding", lambda: binding)
    return binding


@pytest.fixture
def case(request):
    """The `Case` of a test that runs for `each_row` of the conformance table."""
    from conformance import Case

    return Case(*request.param)


@pytest.fixture
def kernels_that_ran(monkeypatch):
    """The set of pairs that `kernels.choose` has given since the test began."""
    ran, choose = set(), kernels.choose

    def watch(*args, **facts):
        found = choose(*args, **facts)
        ran.add(found)
        return found

    monkeypatch.setattr(kernels, "choose", watch)
    return ran
