"""What a run says, to whatever it says it to: terminals of any width, streams that are closed, ASCII, nobody."""

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios

import pytest
from runs import CHILD, ROOT, SMALL, few_pictures, run

import train_cifar
from scratchnet.program import console
from scratchnet.program import data as program_data

POSTFIX = "loss 1.2345, accuracy 0.4567, lr 0.0812, 456 pictures/s"


def drawn(columns, monkeypatch):
    """What a bar and a line beside it write to a terminal."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    with open(end, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        says = console.Console()
        with says.bar(703, 0, "epoch 12/20") as bar:
            bar.set_postfix_str(POSTFIX, refresh=False)
            bar.update(300)
            bar.refresh()
            says.say("hello")
    seen = b""
    with contextlib.suppress(OSError):  # how Linux says that all was read and the other end is closed
        while piece := os.read(terminal, 1 << 16):  # a terminal hands out what it has so far
            seen += piece
    return seen.decode()


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 200, 0])
def test_a_bar_stays_in_its_line_and_drops_whole_numbers_that_do_not_fit(columns, monkeypatch):
    seen = drawn(columns, monkeypatch)
    assert seen.count("\n") == 1 and "\rhello\r\n" in seen
    frames = [line for line in seen.replace("\n", "\r").split("\r") if "300/703" in line]
    assert frames and max(map(len, frames)) < (columns or 80)
    if columns >= 60 or not columns:
        (shown,) = {frame.rpartition("<")[2].partition(", ")[2].removesuffix("]") for frame in frames}
        assert POSTFIX.startswith(shown) and shown.count(",") == {60: 0, 80: 1, 0: 1, 100: 2, 200: 3}[columns]


def test_a_log_says_now_and_then_that_the_run_lives_and_once_how_long_it_takes(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    says = console.Console()
    says.expect(1000)
    for title, seconds, training in (("epoch 1/10", 1, True), ("validation", 9, False), ("epoch 2/10", 5, True)):
        with says.bar(10, 2, title, training) as bar:
            for _ in range(8):
                now[0] += seconds
                bar.set_postfix_str("loss 1.5", refresh=False)
                bar.update()
        assert bar.n == 10
    assert capsys.readouterr().out.splitlines() == [
        "validation: 4 of 10 batches, loss 1.5",  # after 26 s
        "validation: 7 of 10 batches, loss 1.5",
        "validation: 10 of 10 batches, loss 1.5",
        "time      about 37 min of training, 2.2 s a step",  # 7 steps of 1 s, 3 of 5 s: the first one does not count
        "epoch 2/10: 10 of 10 batches, loss 1.5",
    ]


def test_evaluations_are_followed_too(monkeypatch, capsys):
    monkeypatch.setattr(console, "ALIVE", 0.0)
    args, pictures = train_cifar.parse(SMALL, ""), few_pictures(0)[1]
    program_data.set_normalisation(args, pictures)
    batches = train_cifar.make_batches(args, pictures, shuffle=False)
    assert len(list(console.Console().follow(batches, "test").epoch(0))) == len(batches) == 2
    assert capsys.readouterr().out.splitlines()[-2:] == ["test: 1 of 2 batches", "test: 2 of 2 batches"]


def shell(redirected, *flags, **environment):
    """The program with the shell's redirections, in a process of its own."""
    command = ["sh", "-c", f'exec "$@" {redirected}', "-", sys.executable, "-c", CHILD, "0", "0", *SMALL, *flags]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, capture_output=True, env=variables, cwd=ROOT, timeout=120)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_end_nothing_and_their_numbers_go_to_no_file(closed, tmp_path):
    life = shell(closed, "--epochs", "1", "--out", tmp_path)
    assert life.returncode == 0 and not life.stderr, life.stderr
    log = (tmp_path / "log.txt").read_text()
    assert "Test accuracy: " in log.splitlines()[-1]
    assert (tmp_path / "run.lock").read_text().strip().isdigit()
    assert life.stdout.decode() == ("" if ">&- " in f" {closed} ".replace("2>&-", "") else log)


def test_an_error_is_said_where_standard_error_is_closed(tmp_path):
    life = shell("2>&-", "--epochs", "0", "--out", tmp_path)
    assert life.returncode == 2 and b"--epochs must be at least 1" in life.stdout


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_an_ascii_terminal_gets_every_line(environment, tmp_path):
    life = shell("", "--epochs", "1", "--out", tmp_path, **environment)
    assert life.returncode == 0, life.stderr
    lines, log = life.stdout.decode("ascii").splitlines(), (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert len(lines) == len(log.splitlines()) and "at 32x32" in lines[2] and "at 32×32" in log


def test_a_folder_whose_name_is_no_unicode(tmp_path):
    out = os.path.join(os.fsencode(tmp_path), b"\xff\xfe")
    life = shell("", "--epochs", "1", "--out", out)
    assert life.returncode == 0 and rb"/\udcff\udcfe" in life.stdout, life.stderr
    assert b"Test accuracy" in life.stdout and os.path.exists(os.path.join(out, b"result.json"))
    missing = shell("", "--eval", os.path.join(out, b"none.npz"))
    assert missing.returncode == 2 and missing.stderr.count(b"\n") == 1


def test_help_into_a_pipe_that_is_closed_is_no_traceback():
    life = shell("--help | true")
    assert not life.stderr and life.returncode == 0


def test_a_terminal_that_is_closed_during_the_test_ends_nothing(tmp_path, monkeypatch):
    def closing(*args):
        os.kill(os.getpid(), signal.SIGHUP)
        return evaluate(*args)

    def hang_up(*_):
        raise AssertionError("SIGHUP reached the program")

    evaluate = train_cifar.evaluate
    monkeypatch.setattr(program_data, "draw_shapes", few_pictures)
    monkeypatch.setattr(train_cifar, "evaluate", closing)
    before = signal.signal(signal.SIGHUP, hang_up)
    try:
        assert run("--epochs", 1, "--out", tmp_path) == 0
        assert signal.getsignal(signal.SIGHUP) is hang_up
    finally:
        signal.signal(signal.SIGHUP, before)


def test_lines_go_to_the_log_that_was_opened_wherever_its_folder_goes(tmp_path, capsys):
    """Or a run whose folder was renamed would write into the log of the run that was started in its place."""
    (tmp_path / "a").mkdir()
    said = console.Console()
    said.say("early")
    said.log_to(tmp_path / "a" / "log.txt")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").mkdir()
    said.say("later \udcff")
    assert not list((tmp_path / "a").iterdir())
    assert (tmp_path / "b" / "log.txt").read_text() == "early\nlater \\udcff\n"
