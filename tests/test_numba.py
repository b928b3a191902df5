"""Numba: imported when it is needed, not needed where it is missing, and its cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_compiled import needs_numba, window

import scratchnet as sn
from scratchnet import kernels
from scratchnet.device import Kind
from scratchnet.fused.depthwise import DepthwiseStep
from scratchnet.kernels import compiled

ROOT = Path(__file__).parents[1]


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


STEP = (
    "net = sn.Sequential(sn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), sn.BatchNorm2d(4), sn.ReLU6())\n"
    "y = net(numpy.ones((2, 4, 3, 5), numpy.float32)); net.backward(y)\n"
)


def test_without_numba_nothing_changes():
    hide = "import sys, numpy; sys.modules['numba'] = None; import scratchnet as sn; from scratchnet import kernels\n"
    ask = "try:\n    sn.use_kernels('compiled')\nexcept ValueError as error:\n    print(error)"
    said = " ".join(python(f"{hide}{STEP}print(sn.plan(net))\n{ask}"))
    assert "depthwise_norm_relu6 numpy compiled kernels need Numba: Numba is not installed" in said
    assert said.endswith("install the extra fast or use 'numpy'")


def test_a_numba_that_cannot_be_imported_is_said_once_and_not_used(monkeypatch):
    monkeypatch.setattr(compiled, "PRESENT", True)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(kernels, "_enabled", "compiled")
    compiled.why_not.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=r"^Numba cannot be imported \(.+\): computing with NumPy's kernels$"):
            compiled.why_not()
        chosen = kernels.choose(DepthwiseStep.plain, Kind("cpu", "float32"), window=window(1))
        assert chosen.version == "numpy"
    finally:
        compiled.why_not.cache_clear()


def test_use_kernels_refuses_what_is_none():
    with pytest.raises(ValueError, match="^use_kernels takes True, False, 'numpy' or 'compiled', got 'cuda'$"):
        sn.use_kernels("cuda")


def test_importing_the_library_does_not_import_numba():
    assert python("import sys, scratchnet, models; print('numba' in sys.modules)") == ["False"]


@needs_numba
def test_where_nothing_can_be_written_it_compiles_for_the_process():
    from scratchnet.kernels.compiled.jit import jit

    space: dict = {}
    exec(compile("def f(x):\n    return x + 1", "<no file>", "exec"), space)  # Numba finds no folder for it
    assert jit(space["f"])(1) == 2


@needs_numba
def test_the_compiled_code_is_kept_where_numba_is_told(tmp_path):
    run = f"import numpy, scratchnet as sn\n{STEP}"
    assert python(run, NUMBA_CACHE_DIR=str(tmp_path)) == []
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}
    assert len(kept) >= 2
    python(run, NUMBA_CACHE_DIR=str(tmp_path))
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}


@needs_numba
def test_the_first_folder_that_can_be_written_keeps_the_code(tmp_path):
    from scratchnet.kernels.compiled.jit import cache_folder

    (tmp_path / "file").write_text("")
    folder = cache_folder(tmp_path / "file" / "no folder", tmp_path / "home")
    assert folder.parent == tmp_path / "home" and folder.is_dir() and not list(folder.iterdir())
    with pytest.raises(OSError, match="^no folder for compiled code can be written$"):
        cache_folder(tmp_path / "file")
