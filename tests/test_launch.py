"""The program as ranks that it starts itself: what comes out, what signals do, who ends with whom, and where MPI cannot."""

import contextlib
import fcntl
import importlib.util
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import ROOT

from scratchnet.program import launch, mpiexec

PROGRAM = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from scratchnet import ranks
from scratchnet.program import launch, rank
from scratchnet.program.console import Console, outlive_terminal

def main():
    if not ranks.was_started():
        return launch.run_as_ranks(int(sys.argv[1]), [sys.executable, *sys.argv], Console())
    rank.take_terminal()
    console = Console()
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: asked.append(number))
    ranks.largest(0)  # from here on a signal ends none of them
    if ranks.rank == 0:
        console.say(f"ranks {{[place[1] for place in ranks._world.places]}} {{os.getpgid(os.getppid())}}.")
    with console.bar(100, 0, "a bar") as bar:
        for _ in range(int(20 * float(sys.argv[2]))):  # as many steps on each rank
            time.sleep(0.05)
            if ranks.rank == 0:
                bar.update()
            if number := ranks.largest(max(asked, default=0)):
                if ranks.rank == 0:
                    console.say(f"asked {{asked}}")
                return 128 + number
    if ranks.rank == 0:
        os.write(1, b"half ")
        os.write(2, b"error\\n")
        print("a line", flush=True)
    ranks.largest(0)
    return int(sys.argv[3 + ranks.rank])

try:
    with outlive_terminal():
        sys.exit(main())
except ranks.RankFailed as error:
    if ranks.speaks():
        print("stopped:", error, flush=True)
    ranks.leave(error.exit_code)
"""


@pytest.fixture
def program(tmp_path):
    """The command of a small program that starts itself: so many ranks, for so many seconds, with these exit codes."""
    pytest.importorskip("mpi4py", reason="MPI is not installed")
    with contextlib.suppress(mpiexec.CannotStart):
        if mpiexec.Mpiexec().options:
            (tmp_path / "program.py").write_text(PROGRAM.format(root=str(ROOT)))
            return [sys.executable, str(tmp_path / "program.py")]
    return pytest.skip("MPICH's mpiexec is not installed")


@pytest.fixture
def life(program):
    """Starts it; what is left of it when the test ends is ended."""
    lives = []

    def start(*arguments, **streams):
        lives.append(Life(program, *arguments, **streams))
        return lives[-1]

    yield start
    for one in lives:
        for process in (one.process.pid, *one.ranks):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        one.process.wait()
        for stream in (one.process.stdout, one.process.stderr):
            if stream:
                stream.close()


class Life:
    """A program that runs; it may be killed."""

    def __init__(self, program, *arguments, **streams):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        self.ranks = []
        self.process = subprocess.Popen([*program, *map(str, arguments)], **streams)

    def started(self):
        """The processes of the ranks, and hydra's two."""
        found, _, ours = self.process.stdout.readline().decode().partition("]")
        self.ranks = [int(process) for process in re.findall(r"\d+", found)]
        (first,) = children(self.process.pid)
        (proxy,) = children(first)
        return SimpleNamespace(ranks=self.ranks, mpiexec=[first], proxy=[proxy], first=[self.process.pid])

    def ended(self, seconds=10):
        """(exit code, what was said, errors), once neither it nor a rank is there."""
        out, errors = self.process.communicate(timeout=seconds)
        until = time.monotonic() + seconds
        while any(Path(f"/proc/{process}").exists() for process in self.ranks):
            assert time.monotonic() < until, "ranks are left"
            time.sleep(0.05)
        return self.process.returncode, out.decode(), errors.decode()


def children(process):
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.parametrize("cores", range(1, 70))
def test_the_rule_fills_the_cores_and_leaves_each_rank_enough_to_do(cores):
    for batch_size in (1, 7, 8, 15, 16, 24, 63, 64, 100, 128, 256, 512, 4096):
        ranks, threads = launch.sensible_ranks(cores, batch_size)
        assert 1 <= threads <= 2 and 1 <= ranks and ranks * threads <= cores
        assert ranks == 1 or batch_size // ranks >= 8
        more = launch.sensible_ranks(cores + 1, batch_size), launch.sensible_ranks(cores, batch_size + 1)
        assert all(r * launch.WORTH[t] >= ranks * launch.WORTH[threads] for r, t in more)


@pytest.mark.parametrize(
    ("cores", "batch_size", "expected"),
    [
        (1, 128, (1, 1)), (2, 128, (2, 1)), (2, 15, (1, 2)), (4, 24, (2, 2)), (6, 32, (3, 2)), (8, 64, (8, 1)),
        (16, 128, (16, 1)), (16, 64, (8, 2)), (16, 96, (8, 2)), (16, 112, (14, 1)), (64, 64, (8, 2)),
    ],
)  # fmt: skip
def test_the_rule_for_some_machines(cores, batch_size, expected):
    assert launch.sensible_ranks(cores, batch_size) == expected


@pytest.mark.parametrize(("codes", "code"), [((2, 2), 2), ((0, 3), 1)])
def test_output_arrives_as_it_was_written_and_exit_codes_are_handed_on(codes, code, life):
    run = life(2, 0.1, *codes)
    run.started()
    said = run.ended()
    assert said[0] == code and said[1].startswith("half a line\n") and said[2] == "error\n"
    assert said[1].count("\n") == (2 if code == 1 else 1)  # nobody knows a code of 3
    assert "rank 1 ended by exit code 3" in said[1] or code != 1


def test_at_a_terminal_the_bar_moves_and_ctrl_c_reaches_each_rank_once(life):
    terminal, end = pty.openpty()

    def own():
        fcntl.ioctl(end, termios.TIOCSCTTY, 0)

    streams = {"stdin": end, "stdout": end, "stderr": end, "start_new_session": True, "preexec_fn": own}
    run = life(2, 10, 0, 0, **streams)
    os.close(end)
    seen, late = b"", threading.Timer(20, run.process.kill)
    late.start()
    with contextlib.suppress(OSError):  # how Linux says that nobody has the other end
        while piece := os.read(terminal, 1 << 16):
            drawn, seen = seen.count(b"/100"), seen + piece
            if drawn < 3 <= seen.count(b"/100"):
                os.write(terminal, b"\x03")
    os.close(terminal)
    late.cancel()
    assert run.process.wait(10) == 130
    assert b"\r" in seen and seen.decode().count("asked [2]") == 1, seen


def test_sigterm_is_handed_on_once_and_a_closed_terminal_ends_nothing(life):
    run = life(3, 10, 0, 0, 0)
    run.started()
    run.process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    run.process.terminate()
    assert run.ended() == (143, "asked [15]\n", "")


@pytest.mark.parametrize(
    ("victims", "code", "says"),
    [
        (lambda life: life.ranks[1:], 1, r"stopped: rank 1 \(process \d+\) ended without a word: .*\n"),
        (lambda life: life.ranks[:1], 1, r"stopped: rank 0 \(process \d+\) ended without a word: .*\n"),
        (lambda life: life.ranks, 1, r"stopped: rank 0 ended by SIGKILL, rank 1 ended by SIGKILL\n"),
        (lambda life: life.first, -9, r"asked \[15\]\n"),
        (lambda life: life.mpiexec, 1, r"(asked \[15\]\n)?stopped: mpiexec was killed, and the ranks ended with it\n"),
        (lambda life: life.proxy, 1, r"asked \[15\]\nstopped: mpiexec .*\n"),
    ],
    ids=["rank 1", "rank 0", "all ranks", "first process", "mpiexec", "proxy"],
)
def test_all_end_with_whoever_is_killed_and_one_line_says_why(victims, code, says, life):
    run = life(2, 20, 0, 0)
    found = run.started()
    for victim in victims(found):
        os.kill(victim, signal.SIGKILL)
    if victims(found) == found.ranks[1:]:  # something for hydra to do, or it may not look before the others have ended
        time.sleep(0.02)
        os.kill(*found.mpiexec, signal.SIGUSR1)
    ended = run.ended()
    assert ended[0] == code and not ended[2]
    assert re.fullmatch(says, ended[1]), ended[1]


def test_a_run_rests_while_it_is_suspended(life):
    run = life(2, 1, 0, 0)
    run.started()
    run.process.send_signal(signal.SIGTSTP)
    until, states = time.monotonic() + 5, []
    while states != ["T"] * 3 and time.monotonic() < until:
        time.sleep(0.05)
        files = (Path(f"/proc/{process}/stat") for process in (run.process.pid, *run.ranks))
        states = [file.read_text().rpartition(")")[2].split()[0] for file in files]
    run.process.send_signal(signal.SIGCONT)
    assert states == ["T"] * 3 and run.ended()[0] == 0


def test_nothing_stays_behind_in_shared_memory(life):
    run = life(2, 20, 0, 0)
    run.started()
    opened = [os.readlink(fd) for process in run.ranks for fd in Path(f"/proc/{process}/fd").iterdir()]
    shared = [path for path in opened if path.startswith("/dev/shm/mpich")]
    assert shared and all(path.endswith(" (deleted)") for path in shared)
    run.process.terminate()
    assert run.ended()[0] == 143


def test_a_rank_that_hangs_after_the_others_have_ended_is_ended(program, monkeypatch):
    text = """
import os, time
from scratchnet import ranks
from scratchnet.program.rank import take_terminal
take_terminal()
if ranks.rank == 0:
    time.sleep(60)
os._exit(0)"""
    monkeypatch.setattr(launch, "LAST", 0.5)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    said: list = []
    assert launch.run_as_ranks(2, [program[0], "-c", text], SimpleNamespace(say=said.append)) == 1
    assert said == ["stopped: rank 0 ended by SIGKILL"]


FALSE = {  # an mpiexec: what is said of it
    "echo this machine has no room >&2; exit 3": "this machine has no room",
    "sleep 20": "nothing has started within 1 s",
    'shift 2; PMI_RANK=0 "$@" & PMI_RANK=1 "$@"; wait': "{} is not of the MPI that mpi4py uses",
    "kill -9 $$": "mpiexec ended by SIGKILL",
}


@pytest.mark.parametrize("does", FALSE)
def test_where_mpi_cannot_start_one_line_says_why(does, program, tmp_path, monkeypatch, capfd):
    false = tmp_path / "bin" / "mpiexec"
    false.parent.mkdir()
    false.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{does}\n')
    false.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(false.parent / "python"))
    monkeypatch.setattr(launch, "START", 10.0 if "PMI" in does else 1.0)
    said = []
    assert launch.run_as_ranks(2, [*program, "2", "0", "0", "0"], SimpleNamespace(say=said.append)) is None
    assert said == [f"MPI cannot start here ({FALSE[does].format(false)}): training on threads"]
    assert capfd.readouterr() == ("", "")
    assert not children(os.getpid())


def test_without_mpi_one_line_says_what_to_install(monkeypatch, tmp_path):
    said = []
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert launch.run_as_ranks(2, ["false"], SimpleNamespace(say=said.append)) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch.run_as_ranks(2, ["false"], SimpleNamespace(say=said.append)) is None
    assert [re.findall("pip install .*mpich", line) for line in said] == [
        ["pip install 'mpi4py>=4.0' 'mpich"],
        ["pip install mpich"],
    ]
