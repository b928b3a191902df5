"""The ranks as one of them sees them: how they exchange arrays, and what it does when one does not answer."""

import contextlib
import os
import signal
import socket
import time
from typing import Any

import numpy as np

from scratchnet.device import device_of
from scratchnet.parallel import nccl

POLLS = 20  # looks at a message before a waiting rank lets others use its core
PATIENCE = 0.02  # seconds until it sleeps between two looks
LOOKOUT = 0.5  # seconds between two looks whether the others are still alive
ANSWER = 3.0  # seconds in which a rank that waits has to say so, once another's time is up
LAST_WORDS = 5.0  # seconds that a rank which ends waits for the one that says why
# Sleeping for 0 s leaves another 79 % of a core, this 98.
let_others = getattr(os, "sched_yield", lambda: time.sleep(0))


class RankFailed(RuntimeError):
    """Another rank has ended, has failed, or did not come; the message says which, and why.

    Attributes:
        exit_code: what the program should end with.
    """

    def __init__(self, message, exit_code=1):
        super().__init__(message)
        self.message, self.exit_code = message, exit_code

    def __str__(self):
        return self.message  # whatever layer it came through (cache.located): it is none's fault


class Traffic:
    """What this rank has sent, and how long it has waited: messages, bytes, seconds."""

    def __init__(self):
        self.messages, self.bytes, self.seconds = 0, 0, 0.0


class World:
    """All ranks.

    A wait ends in one of four ways: the message comes; another rank tells what went wrong there; a process on this machine
    is found dead; time is up. The last three are a `RankFailed`.
    """

    FAILED, HERE = 1, 2  # kinds of messages beside the exchanges

    def __init__(self, mpi, wait, traffic):
        self.mpi, self.limit, self.traffic, self.steps = mpi, wait, traffic, 0
        self.comm, self.aside = mpi.COMM_WORLD, mpi.COMM_WORLD.Dup()
        self.rank, self.size = self.comm.rank, self.comm.size
        self.gone: set[int] = set()
        self._found: dict = {}
        self.places = self.comm.allgather((machine(), os.getpid()))
        self.cores = self.comm.allgather(own_cores())
        self._cards: Any = None  # what nccl.join gave, once asked: a tuple of one
        _unlink_shared_memory()

    def cards_for(self, array):
        """What sums arrays like this one on the ranks' cards; None where they go through the host."""
        if device_of(array) == "cpu":
            return None
        if self._cards is None:
            self._cards = (nccl.join(self, machine(), array),)
        return self._cards[0]

    def gather(self, array, found=None):
        """(R, …): every rank's array; in `found`, where that is given."""
        if found is None:
            found = np.empty((self.size, *array.shape), array.dtype)
        self._finish(self.comm.Iallgather(array, found), array.nbytes)
        return found

    def exchange(self, array):
        """What each rank has for this one: array is (R · n,), the part for each rank in order.

        It holds until the next exchange of as many: memory that is new every time costs more than the message.
        """
        key = array.shape, array.dtype
        if key not in self._found:
            self._found[key] = np.empty_like(array)
        found = self._found[key]
        self._finish(self.comm.Ialltoall(array, found), array.nbytes)
        return found

    def from_first(self, make, wait):
        """`make()` of rank 0, pickled to the others."""
        if self.rank == 0:
            made = np.frombuffer(self.mpi.pickle.dumps(make()), np.uint8)
        length = np.array([made.size if self.rank == 0 else 0])
        self._finish(self.comm.Ibcast(length), 8, wait or float("inf"))
        data = made.copy() if self.rank == 0 else np.empty(length[0], np.uint8)
        self._finish(self.comm.Ibcast(data), data.nbytes)
        return self.mpi.pickle.loads(data.tobytes())

    def tell(self, why, exit_code):
        """Let all others know what went wrong here, as far as they listen within a second."""
        who = "" if isinstance(why, RankFailed) else f"rank {self.rank}: "
        text = np.frombuffer(f"{exit_code} {who}{why}".encode(), np.uint8)
        self._send_all(text, self.FAILED, time.monotonic() + 1)

    def speaker(self):
        """The first rank that is not known to be gone."""
        return min(set(range(self.size)) - self.gone)

    def wait_for_the_speaker(self):
        """Let it say why all end: where this process is the first to end, mpiexec may kill the others."""
        until = time.monotonic() + LAST_WORDS
        where, process = self.places[self.speaker()]
        while time.monotonic() < until and (where != machine() or is_alive(process)):
            time.sleep(PATIENCE)

    def end_the_hanging(self, exit_code):
        """Kill those on this machine that did not come; where one is elsewhere, let MPI end all."""
        for other in self.gone:
            where, process = self.places[other]
            if where != machine():
                self.comm.Abort(exit_code)
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)

    def _finish(self, request, count, limit=None):
        """Wait until the exchange is done."""
        self.steps += 1
        self.traffic.messages += 1
        self.traffic.bytes += count
        begun = time.perf_counter()
        for _ in range(POLLS):
            if request.Test():
                break
        else:
            self._wait(request, self.limit if limit is None else limit)
        self.traffic.seconds += time.perf_counter() - begun

    def _wait(self, request, limit):
        begun = looked = before = time.monotonic()
        while not request.Test():
            now = time.monotonic()
            if now - before > LOOKOUT:  # all were suspended, as by Ctrl-Z: nobody is late for that
                begun += now - before
            before = now
            if now - begun < PATIENCE:
                let_others()  # another rank may need this core
                continue
            if self.aside.Iprobe(tag=self.FAILED) and not self._comes_yet(request):
                self._raise_told()
            if self.aside.Iprobe(tag=self.HERE):  # another one's time is up
                self._accuse(limit)
            if now - looked > LOOKOUT:
                looked = now
                if self._find_the_dead() and not self._comes_yet(request):
                    self._raise_dead()
            if now - begun > limit:
                self._accuse(limit)
            time.sleep(PATIENCE / 100)

    def _comes_yet(self, request):
        """Whether an exchange ends all the same, as one does that a rank took part in before it failed.

        What follows from it is then found by every rank by itself, in the same words.
        """
        until = time.monotonic() + LOOKOUT / 5
        while not (done := request.Test()) and time.monotonic() < until:
            time.sleep(PATIENCE / 100)
        return done

    def _raise_told(self):
        status = self.mpi.Status()
        message = self.aside.Mprobe(tag=self.FAILED, status=status)
        text = np.empty(status.Get_count(), np.uint8)
        message.Recv(text)
        code, _, why = text.tobytes().decode().partition(" ")
        self._find_the_dead()
        self.gone.discard(status.source)  # it has ended after it said so, or will
        raise RankFailed(why, int(code))

    def _find_the_dead(self):
        here = machine()
        for other, (where, process) in enumerate(self.places):
            if where == here and other != self.rank and not is_alive(process):
                self.gone.add(other)
        return self.gone

    def _raise_dead(self):
        if self.aside.Iprobe(tag=self.FAILED):  # it said why
            self._raise_told()
        named = _names(sorted(self.gone), lambda other: f" (process {self.places[other][1]})")
        raise RankFailed(f"{named} ended without a word: killed, by somebody or for lack of memory")

    def _accuse(self, limit):
        """Say who did not come: those that do not answer within ANSWER, or `limit`, that they are here too."""
        until = time.monotonic() + min(ANSWER, limit)
        self._send_all(np.array([self.steps]), self.HERE, until)
        missing = set(range(self.size)) - {self.rank}
        while missing and time.monotonic() < until:
            if self.aside.Iprobe(tag=self.HERE):
                status, steps = self.mpi.Status(), np.zeros(1, int)
                self.aside.Recv(steps, tag=self.HERE, status=status)
                missing.discard(status.source)
            time.sleep(PATIENCE)
        if missing:
            self.gone |= missing
            raise RankFailed(f"{_names(sorted(missing))} did not come within {limit:g} s: it hangs, or is far too slow")
        raise RankFailed(f"the ranks wait for one another since {limit:g} s: they no longer do the same thing")

    def _send_all(self, data, kind, until):
        others = [other for other in range(self.size) if other != self.rank]
        self._sent = data, [self.aside.Isend(data, other, tag=kind) for other in others]  # kept until they are there
        while not all(request.Test() for request in self._sent[1]) and time.monotonic() < until:
            time.sleep(PATIENCE / 10)


def _names(numbers, more=lambda number: ""):
    return ("rank " if len(numbers) == 1 else "ranks ") + ", ".join(f"{number}{more(number)}" for number in numbers)


def machine():
    """What processes that can see each other have in common."""
    try:
        return socket.gethostname(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname(), ""


def own_cores():
    """Numbers of the cores that this process may use."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def _unlink_shared_memory():
    """Take the name from MPICH's shared memory, now that all have it: 2 MB and more would stay behind in /dev/shm.

    MPICH does so in MPI_Finalize, which a rank that is killed or leaves (`ranks.leave`) does not reach.
    """
    with contextlib.suppress(OSError):  # no /proc
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # it was closed, or has no name any more
                path = os.readlink(f"/proc/self/fd/{number}")
                if path.startswith("/dev/shm/mpich_shm"):
                    os.unlink(path)


def is_alive(process):
    """Whether a process of this machine runs, as far as that can be known."""
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"  # ended, and nobody has asked how
    except ProcessLookupError:
        return False
    except OSError:  # no /proc, or another user's
        return True
