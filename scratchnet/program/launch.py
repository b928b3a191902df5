"""The program starts itself as ranks under mpiexec, and stands for them to whoever started it.

The first process computes nothing. It hands its own standard output and error to the ranks through a socket, so that what a
rank writes goes where the user sent it, a terminal's bar included, and nothing passes through mpiexec, whose banners nobody
wants to read. The same socket says that a rank has started, and to both sides that the other one is gone. Signals go from
the first process to each rank, once. What a rank does for it is in rank.py.
"""

import contextlib
import importlib.util
import os
import selectors
import shutil
import signal
import socket
import tempfile
import time

from scratchnet.program.mpiexec import CannotStart, Mpiexec, named
from scratchnet.program.rank import DOOR, STOP

LEAST = 8  # pictures a rank, below which it has too little to do
WORTH = {1: 1.0, 2: 1.7}  # what a rank computes on so many threads, in ranks of one thread
START = 9.5  # seconds in which all ranks have to start
LAST = 60.0  # seconds that ranks may go on once one has ended: less than a minute lies between those that end well
HANDED_ON = (0, 1, 2, 130, 143)  # exit codes of train_cifar.py


def sensible_ranks(cores, batch_size):
    """How many ranks, and threads in each, `--ranks auto` takes: (ranks, threads).

    One or two threads a rank, whichever promises more, at most one thread a core, and at least LEAST pictures a rank. On 16
    cores (width 0.5, 32 pictures a rank) one process did 214 pictures a second, 4 of 4 threads 626, 8 of 2 threads 827, 16
    of one thread 983: a rank of two threads is worth 1.7 of one thread each. With 8 pictures each 16 ranks still did 632.
    """
    most = max(1, batch_size // LEAST)
    choices = [(min(cores // threads, most), threads) for threads in WORTH if threads <= cores]
    return max(choices, key=lambda choice: choice[0] * WORTH[choice[1]])


def run_as_ranks(count, command, console):
    """Run a command as so many ranks of this machine, until they end.

    Args:
        command: list of program and arguments; the program calls `take_terminal` first.
        console: says the line that tells why there are no ranks, or how they ended where none of them could say it.

    Returns:
        Exit code of the program; None where MPI cannot start here, and nothing runs.
    """
    if importlib.util.find_spec("mpi4py") is None:
        console.say(
            f"mpi4py is missing: training on threads; with pip install 'mpi4py>=4.0' 'mpich>=4.2' {count} processes would "
            "share each batch, which is faster"
        )
        return None
    try:
        with _Launch(count, Mpiexec()) as launch:
            return launch.follow(command, console)
    except (CannotStart, OSError) as why:
        reason = "".join(c if c.isprintable() else " " for c in str(why))
        console.say(f"MPI cannot start here ({reason}): training on threads")
        return None


class _Launch:
    """The ranks as the first process sees them."""

    def __init__(self, count, mpiexec):
        self.count, self.mpiexec = count, mpiexec
        self.links: dict[socket.socket, int] = {}  # of the ranks that are there: their process
        self.started, self.asked = 0, 0  # ranks; the last signal that asked to stop

    def __enter__(self):
        # a socket's path has 100 characters
        self.folder = tempfile.mkdtemp(prefix="ranks", dir="/tmp" if len(tempfile.gettempdir()) > 80 else None)
        self.selector, self.door = selectors.DefaultSelector(), socket.socket(socket.AF_UNIX)
        handlers = {signal.SIGINT: self._hand_on, signal.SIGTERM: self._hand_on, signal.SIGTSTP: self._pause}
        self.before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_):
        self._signal(signal.SIGKILL)
        self.mpiexec.end()
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.selector.close()
        for each in (*self.links, self.door):
            each.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def follow(self, command, console):
        """Start the ranks, and see them end; the exit code."""
        path = os.path.join(self.folder, "door")
        self.door.bind(path)
        self.door.listen(self.count)
        self.selector.register(self.door, selectors.EVENT_READ, self._let_in)
        self.mpiexec.start(self.count, command, **{DOOR: path})
        self.selector.register(self.mpiexec.process.stdout, selectors.EVENT_READ, self._hear)
        if not self._wait_for(lambda: self.started == self.count or self.asked or self.mpiexec.ended(), START):
            raise CannotStart(self.mpiexec.reason() or f"nothing has started within {START:.0f} s")
        if self.started < self.count and self.asked:
            console.say(f"stopped by {signal.Signals(self.asked).name}")
            return 128 + self.asked
        if self.started < self.count:
            self._look()  # its last words
            raise CannotStart(self.mpiexec.reason())
        self._wait_for(lambda: self.mpiexec.ended() or len(self.links) < self.count, float("inf"))
        if not self._wait_for(lambda: self.mpiexec.ended() or not self.links, LAST):
            self._signal(signal.SIGKILL)
        if self._wait_for(self.mpiexec.ended, STOP) and self.links:  # it was killed: they end as they do by themselves
            self._wait_for(lambda: not self.links, STOP + 1)
        self._look()
        return self._exit_code(console)

    def _exit_code(self, console):
        code = self.mpiexec.process.poll()
        if code is None or code < 0:
            console.say(f"stopped: mpiexec {'hangs' if code is None else 'was killed'}, and the ranks ended with it")
            return 1
        codes = self.mpiexec.codes()
        said = set(codes) & {*HANDED_ON} - {0}
        killed = {rank: code for rank, code in enumerate(codes) if code not in HANDED_ON}
        if killed and not said:  # nobody is left to say why; else somebody has
            each = ", ".join(f"rank {rank} ended by {named(code)}" for rank, code in killed.items())
            console.say(f"stopped: {each if len(codes) == self.count else f'mpiexec ended by {named(code)}'}")
        return max(said, default=0) if len(said) < 2 and not killed else 1

    def _wait_for(self, what, seconds):
        """Look until it is so, or time is up; whether it is."""
        until = time.monotonic() + seconds
        while not (found := what()) and time.monotonic() < until:
            self._look()
        return bool(found)

    def _look(self):
        """See what has come, or wait a little."""
        for key, _ in self.selector.select(0.1):
            key.data(key.fileobj)

    def _let_in(self, door):
        link, _ = door.accept()
        self.links[link] = 0
        self.selector.register(link, selectors.EVENT_READ, self._listen)

    def _listen(self, link):
        said = b""
        with contextlib.suppress(OSError):
            said = link.recv(100)
        words = said.decode().split()
        if not words:
            self.selector.unregister(link)
            link.close()
            del self.links[link]
        elif words[0] != "of":
            self.links[link] = int(words[0])
        if "of" in words:
            if int(words[-1]) != self.count:
                raise CannotStart(f"{self.mpiexec.path} is not of the MPI that mpi4py uses")
            socket.send_fds(link, [b" "], [1, 2])
            self.started += 1

    def _hear(self, stream):
        if not self.mpiexec.hear():
            self.selector.unregister(stream)

    def _hand_on(self, number, _frame):
        self.asked = number
        self._signal(number)

    def _pause(self, *_):
        """Ctrl-Z: the ranks rest as long as this process does."""
        self._signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._signal(signal.SIGCONT)

    def _signal(self, number):
        for process in self.links.values():
            if process:
                with contextlib.suppress(OSError):
                    os.kill(process, number)
