"""Runs that are killed, moved, damaged or out of room at any call to the disk, against a run that nothing stopped.

SCRATCHNET_SLOW=1 tries every call of a run, and many more sequences of faults.
"""

import collections
import contextlib
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from disk import Disk, Killed
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from runs import content, everything, make_tiny, tiny

from scratchnet.training.checkpoint import CheckpointError, load

SLOW = os.environ.get("SCRATCHNET_SLOW") == "1"
EVERY = 1 if SLOW else 7  # calls from one that fails to the next
COUNTS: collections.Counter = collections.Counter()  # what was tried, for docs/results/faults.md: pytest -s shows it
KEPT = ("last.npz", "last.previous.npz", "best.npz", "metrics.csv", "config.json", "result.json", "curves.png")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """What a run leaves that nothing stopped, by seed, and the calls that it makes."""
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        folder = tmp_path_factory.mktemp("unbroken")
        with Disk(folder) as disk:
            assert live(folder / "2")[0] == 0
        assert live(folder / "3", "--seed", 3)[0] == 0
        return {2: everything(folder / "2"), 3: everything(folder / "3")}, disk.calls


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    make_tiny(monkeypatch)
    COUNTS.clear()
    yield
    print(dict(COUNTS))


def live(out, *flags):
    """One life of a run: (exit code, or None where it was killed; what it said; the lines of its errors)."""
    COUNTS["lives"] += 1
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        try:
            code = tiny(out, *flags)
        except Killed:
            code = None
            COUNTS["kills"] += 1
    return code, said.getvalue(), errors.getvalue().splitlines()


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "log.txt"}


def test_killed_at_any_call_and_resumed_it_is_a_run_that_nothing_stopped(unbroken, tmp_path):
    wanted, calls = unbroken
    for at in range(1, len(calls) + 1, EVERY):
        out = tmp_path / f"run-{at}"
        with Disk(tmp_path, at):
            assert live(out)[0] is None
        code, _, errors = live(out, "--resume")
        assert (code, errors) == (0, []), (at, calls[at - 1])
        assert everything(out) == wanted[2], (at, calls[at - 1])


def test_killed_at_any_call_while_it_resumes_too(unbroken, tmp_path):
    wanted, calls = unbroken
    for at in range(len(calls) // 2 + 2, len(calls), 5 * EVERY):
        for again in range(1, 60, 9):
            out = tmp_path / f"run-{at}-{again}"
            with Disk(tmp_path, at):
                assert live(out)[0] is None
            with Disk(tmp_path, again):
                assert live(out, "--resume")[0] in (None, 0)
            assert live(out, "--resume")[0] == 0
            assert everything(out) == wanted[2], (calls[at - 1], again)


@pytest.mark.parametrize("fault", ["full", "once", "read-only"])
def test_a_disk_that_fails_at_any_call_ends_it_in_a_line_or_costs_a_line_of_the_log(unbroken, tmp_path, fault):
    wanted, calls = unbroken
    for at in range(1, len(calls) + 1, EVERY):
        out = tmp_path / f"run-{at}"
        with Disk(tmp_path, at, fault):
            code, _, errors = live(out)
        what = (at, calls[at - 1], errors)
        assert (code, len(errors)) in ((0, 0), (1, 1), (2, 1)), what
        assert "None" not in "".join(errors), what
        for path in out.glob("*.npz"):
            load(path)
        assert live(out, "--resume")[0] == 0, what
        got, want = list(everything(out)), list(wanted[2])
        got[3] = want[3] = ()  # the log
        assert got == want, what


def test_a_run_whose_folder_is_moved_and_taken_by_another_stops_and_leaves_the_other_alone(unbroken, tmp_path):
    wanted, calls = unbroken
    for at in range(5, len(calls) + 1, EVERY):
        out, moved, left = tmp_path / f"run-{at}", tmp_path / f"moved-{at}", {}

        def take(out=out, moved=moved, left=left):
            out.rename(moved)
            assert live(out, "--seed", 3)[0] == 0
            left.update(files(out))

        with Disk(tmp_path, at, take):
            code, _, errors = live(out)
        assert (code, len(errors)) in ((0, 0), (1, 1), (2, 1)), (calls[at - 1], errors)
        assert files(out) == left, calls[at - 1]
        if code:
            assert live(moved, "--resume")[0] == 0
        if code or (moved / "result.json").exists():
            assert everything(moved) == wanted[2], calls[at - 1]


def damage(path, how):
    """Damage a file; whether it was there."""
    if not path.is_file():
        return False
    data = path.read_bytes()
    at = how * len(data) // 1000
    if how % 4 == 0:
        path.write_bytes(data[:at])
    elif how % 4 == 1:
        path.write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"))
    elif how % 4 == 2:
        path.unlink()
    else:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << how % 8]) + data[at + 1 :] if data else b"")
    return True


class Lives(RuleBasedStateMachine):
    """A folder through starts, kills, full disks, moves and damage; `finish` compares it with the unbroken run."""

    wanted: dict = {}

    @initialize()
    def make(self):
        self.parent = Path(tempfile.mkdtemp())
        self.out, self.patch = self.parent / "run", pytest.MonkeyPatch()
        make_tiny(self.patch)
        self.fresh()

    def fresh(self):
        self.log_is_whole = self.best_is_whole = True

    def teardown(self):
        self.patch.undo()
        shutil.rmtree(self.parent)

    def whole(self, name):
        with contextlib.suppress(CheckpointError):
            return load(self.out / name)
        return None

    def can_resume(self):
        there = [name for name in KEPT[:2] if (self.out / name).exists()]
        return not there or any(map(self.whole, there))

    @rule(at=st.integers(1, 250), fault=st.sampled_from(["kill", "full", "once", "read-only"]), resume=st.booleans())
    def a_life_with_a_fault(self, at, fault, resume):
        before, could = self.out.exists() and any((self.out / n).exists() for n in KEPT[:5]), self.can_resume()
        COUNTS[fault] += 1
        with Disk(self.parent, at, fault) as disk:
            code, _, errors = live(self.out, *(["--resume"] if resume else []))
        assert (code, len(errors)) in ((None, 0), (0, 0), (1, 1), (2, 1)), errors
        assert code is not None or fault == "kill"
        if not resume and before and "rename run" in disk.calls and not (disk.dead and disk.calls[-1] == "rename run"):
            self.fresh()  # whatever was here lies elsewhere now
        if fault in ("full", "once", "read-only"):
            self.log_is_whole = False
        if len(disk.calls) < at:  # nothing happened to it
            assert code == 0 or resume and not could

    @rule(name=st.sampled_from((*KEPT, "log.txt", "run.lock")), how=st.integers(0, 999))
    def damage_a_file(self, name, how):
        if damage(self.out / name, how):
            COUNTS["damaged"] += 1
            self.log_is_whole &= name != "log.txt"
            self.best_is_whole &= name != "best.npz"

    @precondition(lambda self: self.out.exists())
    @rule(name=st.sampled_from(["run", "other", "third"]))
    def move_the_folder(self, name):
        if not (self.parent / name).exists():
            self.out = self.out.rename(self.parent / name)
            COUNTS["moved"] += 1

    @rule(at=st.integers(8, 150))
    def a_second_start_at_the_same_time_is_refused(self, at):
        def second():
            before = files(self.out)
            code, _, errors = live(self.out, "--resume")
            assert code == 2 and "another run" in errors[0] and files(self.out) == before

        if self.can_resume():
            COUNTS["second starts"] += 1
            with Disk(self.out, at, second):
                assert live(self.out, "--resume")[0] == 0

    @rule()
    def finish(self):
        could = self.can_resume()
        COUNTS["finished" if could else "nothing left to resume"] += 1
        code, _, errors = live(self.out, "--resume")
        if not could:
            assert code == 2 and len(errors) == 1, errors
            shutil.rmtree(self.out)
            self.fresh()
            return
        assert (code, errors) == (0, []), errors
        if not self.best_is_whole:  # another epoch's may be the best then, or none, which is said
            assert content(self.out)[::2] == self.wanted[2][0][::2]
            assert json.loads((self.out / "result.json").read_text())["tested_epoch"] in (1, 2, 3)
            return
        got, want = list(everything(self.out)), list(self.wanted[2])
        if not self.log_is_whole:
            got[3] = want[3] = ()
        assert got == want


def test_any_sequence_of_faults_ends_in_the_unbroken_run_or_in_a_line(unbroken):
    Lives.wanted = unbroken[0]
    many = {"max_examples": 1200, "stateful_step_count": 14} if SLOW else {"max_examples": 15, "stateful_step_count": 8}
    run_state_machine_as_test(Lives, settings=settings(deadline=None, report_multiple_bugs=False, **many))
