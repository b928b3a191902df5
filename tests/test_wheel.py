"""The library outside its checkout: a wheel is built, installed into an environment of its own, and used there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = (".py", ".cu", ".txt", ".html", ".css", ".js")

USE = """
import sys
from pathlib import Path
import numpy as np
import scratchnet as sn
from scratchnet.data import imagenet
from scratchnet.exercises.command import main as exercises
from scratchnet.kernels.cuda import launch
from scratchnet.models import MobileNetV2

sn.use_kernels("numpy")  # Numba would compile for a minute
place = Path(sn.__file__).parent
assert Path(sys.prefix) in place.parents, place
assert MobileNetV2.__module__ == "scratchnet.models.mobilenetv2"
assert sorted(path.name for path in Path(launch.__file__).parent.glob("*.cu")) == sys.argv[1].split()
assert len(imagenet.CLASSES) == 1000
try:
    import models
except ImportError:
    pass
else:
    raise AssertionError(models.__file__)

rng = np.random.default_rng(0)
model = MobileNetV2(10, 0.1, rng=rng)
optimizer, criterion = sn.SGD(model.parameters(), lr=0.05, momentum=0.9), sn.CrossEntropyLoss()
x, labels, losses = rng.standard_normal((8, 3, 32, 32), dtype=np.float32), np.arange(8), []
for step in range(4):
    model.zero_grad()
    losses.append(float(criterion(model(x), labels)))
    model.backward(criterion.backward())
    optimizer.step()
assert losses[-1] < losses[0], losses
layer = sn.Sequential(sn.Conv2d(3, 4, 3, dtype=np.float64, rng=rng), sn.ReLU6())
print(sn.gradcheck(layer, rng.standard_normal((2, 3, 5, 4))))
sn.save("a.npz", model)
again = MobileNetV2.from_checkpoint("a.npz")
assert np.array_equal(again(x), model.eval()(x))
assert exercises(["linear"]) == 0 and exercises(["check", "linear"]) == 1
file = Path("exercises/linear/linear.py")
body = "return as_images(weight.T @ dy.T), dy.T @ columns.T, dy.sum(axis=0) if has_bias else None"
text = file.read_text(encoding="utf-8").replace('raise NotImplementedError("to be written")', body)
file.write_text(text, encoding="utf-8")
assert exercises(["check", "linear"]) == 0
print("used")
"""

BOTH_NAMES = """
import sys
{first}
import models, models.mobilenetv2, scratchnet.models, scratchnet.models.mobilenetv2
from models import MobileNetV2
assert models.MobileNetV2 is scratchnet.models.MobileNetV2 is MobileNetV2
assert models.mobilenetv2 is scratchnet.models.mobilenetv2 is sys.modules["models.mobilenetv2"]
assert models.mobilenetv2.__file__ == sys.argv[1], models.mobilenetv2.__file__
"""


def call(*command, cwd=ROOT, path=None):
    """Run it, without the checkout in PYTHONPATH; what it prints."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"PYTHONPATH": path} if path else {}
    result = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def pip(*arguments):
    return call(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what a wheel is built from: building writes into the folder."""
    try:
        found = int(metadata.version("setuptools").split(".")[0]), metadata.version("pip")
    except metadata.PackageNotFoundError as error:
        pytest.skip(f"a wheel is built by setuptools and pip, without the network: {error} is not installed")
    if found[0] < 77:
        pytest.skip(f"a wheel is built by setuptools 77 or newer, without the network: {found[0]} is installed")
    copy = tmp_path_factory.mktemp("source") / "checkout"
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("scratchnet", "models"):
        shutil.copytree(ROOT / name, copy / name, ignore=leave)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture
def environment(tmp_path):
    """The Python of a new environment, which has the dependencies of this one, and nothing of scratchnet."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=os.name != "nt")
    python = tmp_path / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth are not read
    return python


def files_in(folder, below):
    return {(below / path.relative_to(folder)).as_posix() for path in folder.rglob("*") if path.suffix in CODE}


def test_a_wheel_has_every_file_and_works_outside_the_checkout(source, environment, tmp_path):
    pip("wheel", source, "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if name.endswith(CODE) and ".dist-info/" not in name}
    networks = files_in(ROOT / "models", Path("scratchnet/models"))
    assert inside == files_in(ROOT / "scratchnet", Path("scratchnet")) | networks
    pip("--python", environment, "install", "--no-deps", "--no-index", "-q", wheel)
    kernels = sorted(path.name for path in (ROOT / "scratchnet/kernels/cuda").glob("*.cu"))
    (tmp_path / "elsewhere").mkdir()
    assert call(environment, "-c", USE, " ".join(kernels), cwd=tmp_path / "elsewhere").endswith("used\n")


def test_an_editable_install_has_one_module_by_both_names(source, environment, tmp_path):
    pip("--python", environment, "install", "--no-deps", "--no-index", "--no-build-isolation", "-q", "-e", source)
    file = source / "models/mobilenetv2.py"
    for first in ("", "import scratchnet.models.mobilenetv2", "import models.mobilenetv2"):
        call(environment, "-c", BOTH_NAMES.format(first=first), file, cwd=source)
    code = "import sys, scratchnet.models.mobilenetv2 as found; assert found.__file__ == sys.argv[1], found.__file__"
    call(environment, "-c", code, file, cwd=tmp_path)  # where there is no folder models/


@pytest.mark.parametrize("first", ["", "import scratchnet.models.mobilenetv2", "import models.mobilenetv2"])
def test_a_checkout_has_one_module_by_both_names(first, tmp_path):
    file = ROOT / "models/mobilenetv2.py"
    call(sys.executable, "-c", BOTH_NAMES.format(first=first), file, cwd=tmp_path, path=str(ROOT))


def test_a_folder_of_that_name_beside_the_users_script_does_not_come_between(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/__init__.py").write_text("mine = True\n")
    code = (
        "import models, scratchnet.models as ours; assert models.mine and ours.MobileNetV2(10, 0.1).num_classes == 10"
    )
    call(sys.executable, "-c", code, cwd=tmp_path, path=f"{tmp_path}{os.pathsep}{ROOT}")
