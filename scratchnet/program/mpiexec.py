"""mpiexec as one process among others: found, started, listened to, ended."""

import collections
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

HYDRA = (
    "-launcher fork -rmk user -hosts localhost -disable-auto-cleanup -print-all-exitcodes".split()
)  # all on this machine
# Hydra kills all ranks as soon as it sees that one was killed by a signal, whatever its options say; that a shell ends with
# 137 is no such thing. Hydra then sends SIGUSR1 to all, for MPICH's own handling of faults, which would end the shells.
SHELL = ("sh", "-c", 'trap "" USR1; "$@"; exit $?', "sh")
NOISE = ("=", "YOUR APPLICATION", "This typically", "Please see", "[mpiexec@", "Terminated")  # beside the reason
VERSION = 5.0  # seconds that it has to say its version


class CannotStart(Exception):
    """Why there are no ranks here."""


class Mpiexec:
    """The one beside Python, as pip installs it, else the one that the shell would find: MPICH's, or another's.

    Attributes:
        process: what runs, or None.
        words: lines that mpiexec said last, and ranks that write to it.
    """

    def __init__(self):
        beside = os.path.join(os.path.dirname(sys.executable), "mpiexec")
        path = beside if os.access(beside, os.X_OK) else shutil.which("mpiexec")
        if path is None or not hasattr(socket, "send_fds"):
            raise CannotStart("no mpiexec: pip install mpich")
        self.path: str = path
        self.process: Any = None
        self.words: collections.deque[str] = collections.deque([""], 100)
        try:
            asked = subprocess.run(
                [path, "--version"],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=VERSION,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise CannotStart(f"{path} does not say its version within {VERSION:.0f} s") from None
        self.options = HYDRA if b"HYDRA" in asked.stdout else []

    def start(self, count, command, **environment):
        """Start so many ranks, in a session of their own: a terminal's Ctrl-C does not reach them."""
        self.process = subprocess.Popen(
            [self.path, *self.options, "-n", str(count), *SHELL, *command], env=os.environ | environment, bufsize=0,
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def ended(self):
        """Whether it has."""
        return self.process.poll() is not None

    def hear(self):
        """Read what it says; whether there may be more."""
        heard = self.process.stdout.read(1 << 16)
        *lines, rest = (self.words.pop() + heard.decode(errors="replace")).split("\n")
        self.words.extend([*lines, rest])
        return bool(heard)

    def reason(self):
        """The last line that it, or what it started, said of itself; how it ended, where there is none."""
        lines = [line.strip() for line in self.words]
        said = [line for line in lines if line and not line.startswith(NOISE)]
        code = self.process.poll()
        return said[-1] if said else "" if code is None else f"mpiexec ended by {named(code)}"

    def codes(self):
        """The exit code of each rank, in order, where it has said them; else its own."""
        found = [line.rpartition("] ")[2].split(",") for line in self.words if "Exit codes:" in line]
        return [os.waitstatus_to_exitcode(int(status)) for status in found[-1]] if found else [self.process.returncode]

    def end(self):
        """End it and all that it has started."""
        if self.process is not None:
            for process in (*_descendants(self.process.pid), self.process.pid):
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
            self.process.wait()
            self.process.stdout.close()


def named(code):
    """What an exit code says: a signal, where it is a shell's or Python's for one."""
    try:
        return signal.Signals(code - 128 if code > 128 else -code).name
    except ValueError:
        return f"exit code {code}"


def _descendants(process):
    """Children and theirs, on Linux."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [each for child in map(int, children) for each in (child, *_descendants(child))]
