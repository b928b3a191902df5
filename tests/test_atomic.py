"""Files that are whole or absent: after a kill at any call, on a full disk, in a folder that takes no file."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import number_of, numbered

from scratchnet.training import atomic
from scratchnet.training.checkpoint import load, load_latest, save_rotating

ROOT = Path(__file__).parent.parent
SLOW = os.environ.get("SCRATCHNET_SLOW") == "1"


KILLED = """
import io, os, shutil, sys
import numpy as np
from scratchnet.training import atomic, checkpoint

parent, links = sys.argv[1], sys.argv[2] == "links"
calls = last_call = 0

def tick():
    global calls
    calls += 1
    if calls == last_call:
        os._exit(9)  # nothing is cleaned up, as under kill -9

def ticking(function):
    def call(*arguments):
        result = function(*arguments)
        tick()
        return result
    return call

class Halved(io.BufferedWriter):
    def write(self, data):
        super().write(data[: len(data) // 2])
        self.flush()
        tick()
        super().write(data[len(data) // 2 :])
        tick()

def refuse(*arguments):
    raise PermissionError("no hard links here")

atomic.open = ticking(lambda path, mode: Halved(io.FileIO(path, "w")))
for name in ("fsync", "replace"):
    setattr(os, name, ticking(getattr(os, name)))
os.link = ticking(os.link) if links else refuse
shutil.copyfile = ticking(shutil.copyfile)
for folder in sorted(os.listdir(parent)):
    process = os.fork()  # one that imports NumPy for each kill would take long
    if process == 0:
        last_call = int(folder)
        checkpoint.save_rotating(os.path.join(parent, folder), {"w": np.full(5000, 3.0)}, {"number": 3})
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("links", ["links", "no links"])
@pytest.mark.parametrize("state", ["two whole", "last damaged"])
def test_a_kill_after_any_call_leaves_a_whole_checkpoint(tmp_path, links, state):
    folders = [tmp_path / str(last_call) for last_call in range(1, 10)]
    for folder in folders:
        folder.mkdir()
        for number in (1, 2):
            save_rotating(folder, *numbered(number))
        if state == "last damaged":
            os.truncate(folder / "last.npz", 5000)
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), links]
    codes = list(map(int, subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.split()))
    assert codes == [9] * 8 + [0]  # open, half, write, fsync, link or copy, replace, replace, fsync, and no more
    before = 2 if state == "two whole" else 1
    for folder, code in zip(folders, codes, strict=True):
        assert number_of(load_latest(folder, lambda line: None)) in ((3,) if code == 0 else (before, 3))
        save_rotating(folder, *numbered(4))
        assert number_of(load_latest(folder, pytest.fail)) == 4
        assert sorted(os.listdir(folder)) == ["last.npz", "last.previous.npz"]


def test_a_leftover_of_a_process_with_our_own_pid_is_no_hindrance(tmp_path):
    for number in (1, 2):
        save_rotating(tmp_path, *numbered(number))
    # In a container the pid is often the same after a restart.
    (tmp_path / f"last.npz.tmp.{os.getpid()}").write_bytes(b"half")
    os.link(tmp_path / "last.npz", tmp_path / f"last.previous.npz.tmp.{os.getpid()}")
    save_rotating(tmp_path, *numbered(3))
    assert number_of(load_latest(tmp_path, pytest.fail)) == 3
    assert load(tmp_path / "last.previous.npz")[1]["number"] == 2
    assert sorted(os.listdir(tmp_path)) == ["last.npz", "last.previous.npz"]


CALLS = [("fsync", 1), ("fsync", 2), ("replace", 1), ("replace", 2), ("write", 1), ("open", 1)]


@pytest.mark.parametrize(("name", "nth"), CALLS)
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_call_that_fails_leaves_whole_checkpoints_and_no_temporary_file(tmp_path, monkeypatch, name, nth, failure):
    for number in (1, 2):
        save_rotating(tmp_path, *numbered(number))
    calls = []

    def fails(function):
        def call(*arguments):
            calls.append(name)
            if len(calls) == nth:
                raise failure
            return function(*arguments)

        return call

    class Failing(io.BufferedWriter):
        write = fails(io.BufferedWriter.write)

    with monkeypatch.context() as patch:
        if name == "write":
            patch.setattr(atomic, "open", lambda path, mode: Failing(io.FileIO(path, "w")), raising=False)
        elif name == "open":
            patch.setattr(atomic, "open", fails(open), raising=False)
        else:
            patch.setattr(os, name, fails(getattr(os, name)))
        with pytest.raises(type(failure)) as caught:
            save_rotating(tmp_path, *numbered(3))
    if isinstance(failure, OSError):
        assert str(caught.value) == f"[Errno {errno.ENOSPC}] No space left on device: '{tmp_path / 'last.npz'}'"
    done = (name, nth) in (("fsync", 2), ("replace", 2))
    assert number_of(load_latest(tmp_path, pytest.fail)) == (3 if done else 2)
    assert load(tmp_path / "last.previous.npz")[1]["number"] == (2 if (name, nth) == ("fsync", 2) else 1)
    assert sorted(os.listdir(tmp_path)) == ["last.npz", "last.previous.npz"]


def test_an_error_of_the_writer_keeps_its_words_and_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="^the encoder gave up$"), atomic.atomic_file(path) as file:
        file.write(b"new")
        raise OSError("the encoder gave up")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    resource = pytest.importorskip("resource")
    save_rotating(tmp_path, *numbered(1))
    script = (
        "import numpy as np\nfrom scratchnet.training import checkpoint\n"
        f"try: checkpoint.save_rotating({str(tmp_path)!r}, {{'w': np.ones(5000)}}, {{}})\n"
        "except OSError as error: print(error)"
    )
    child = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert child.stderr == "" and "File too large" in child.stdout and "last.npz" in child.stdout
    assert number_of(load_latest(tmp_path, pytest.fail)) == 1 and os.listdir(tmp_path) == ["last.npz"]


def test_a_folder_that_takes_no_file_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    save_rotating(tmp_path, *numbered(1))
    if os.geteuid():
        tmp_path.chmod(0o555)
    else:  # root may write anywhere

        def refuse(path, mode):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(atomic, "open", refuse, raising=False)
    with pytest.raises(PermissionError, match="Permission denied: '.*last.npz'"):
        save_rotating(tmp_path, *numbered(2))
    tmp_path.chmod(0o755)
    monkeypatch.undo()
    assert number_of(load_latest(tmp_path, pytest.fail)) == 1 and os.listdir(tmp_path) == ["last.npz"]


@pytest.mark.slow
@pytest.mark.skipif(not SLOW, reason="SCRATCHNET_SLOW=1 runs it")
def test_a_process_killed_at_random_moments_always_leaves_a_whole_checkpoint(tmp_path):
    script = (
        "import itertools, numpy as np\nfrom scratchnet.training import checkpoint\n"
        f"for n in itertools.count(2): checkpoint.save_rotating({str(tmp_path)!r}, "
        "{'w': np.full(200_000, n, float)}, {'number': n})"
    )
    save_rotating(tmp_path, *numbered(1))
    rng = np.random.default_rng(0)
    for _ in range(100):
        child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3 + rng.random())
        child.kill()
        child.wait()
        assert number_of(load_latest(tmp_path, lambda line: None)) >= 1
    save_rotating(tmp_path, *numbered(1))
    assert sorted(os.listdir(tmp_path)) == ["last.npz", "last.previous.npz"]
