"""Ranks: processes that share every batch, and compute together what one process would.

Rank r of R takes its share of the pictures (`share`), and what is a sum over the batch is made a sum over all ranks: batch
norm's statistics and the two sums of its backward (layers/norm.py), the loss, and once a step the gradients of all
parameters. Nothing else in a network looks from one picture to another. Sums are made in the order of the ranks, so that
they have the same bits every time.

The processes talk by MPI (mpi4py), wherever they run. A process that `start` was not called in, or that is the only one, is
rank 0 of 1, and nothing here does anything then.

    from scratchnet import ranks
    ranks.start()                                      # under: mpiexec -n 4 python train.py
    …
    here = ranks.share(len(x))                         # every rank has made the same batch
    loss = criterion(model(x[here]), labels[here])     # the mean over all ranks' pictures, on each of them
    model.backward(criterion.backward())
    ranks.sum_gradients(model.parameters())
    optimizer.step()                                   # the same on each of them
"""

import contextlib
import os
import signal
import socket
import sys
import time
from typing import Any

import numpy as np

from scratchnet.array import to_device
from scratchnet.device import device_of, is_array

rank, size = 0, 1
WAIT = 120.0  # seconds, the longest that a rank waits for another, but where it is told to wait longer
SMALL = 1 << 15  # bytes from all ranks together, up to which each adds up everything itself
POLLS = 200  # looks at a message before a waiting rank lets others use its core
PATIENCE = 0.02  # seconds until it sleeps between two looks
LOOKOUT = 0.5  # seconds between two looks whether the others are still alive
LAST_WORDS = 5.0  # seconds that a rank which ends waits for the one that says why
STARTED_BY = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MPI_LOCALRANKID")  # what mpiexec and srun set


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


traffic = Traffic()
local_batch_norm = False  # whether batch norm takes each rank's own statistics, as in PyTorch without SyncBatchNorm
_world: Any = None
_weightless = False
_counts = 1, 1  # values a channel in the last exchange of moments: of this rank, of all


def was_started():
    """Whether something like mpiexec started this process as one of several."""
    return any(name in os.environ for name in STARTED_BY)


def start(wait=WAIT):
    """Become one of the ranks that this process was started as: by `mpiexec -n R python …`, or by srun.

    Where it was started alone nothing changes. Called before anything is computed; called again, it only sets `wait`.

    Args:
        wait: seconds after which a rank that waits for another gives up.

    Raises:
        ImportError: it was started as one of several, and mpi4py is missing.
    """
    global rank, size, _world
    if _world is not None:
        _world.limit = wait
    if _world is not None or not was_started():
        return
    from mpi4py import MPI

    if MPI.COMM_WORLD.size > 1:
        _world = _World(MPI, wait)
        rank, size = _world.rank, _world.size
        before = sys.excepthook

        def tell_and_leave(kind, error, trace):
            before(kind, error, trace)
            told = isinstance(error, RankFailed)
            leave(error.exit_code if told else 1, error if told else f"{kind.__name__}: {error}")

        sys.excepthook = tell_and_leave  # else the others would wait for a rank that waits for them in MPI_Finalize


def leave(exit_code, why=None):
    """End this process, without waiting for the others to do so too.

    Args:
        exit_code: of this process.
        why: tells the others what went wrong here, in words; or the `RankFailed` that came from another.
    """
    if _world is not None and why is not None:
        _world.tell(why, exit_code)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):  # whoever read it is gone
                stream.flush()
    if _world is not None:
        if why is not None and not speaks():
            _world.wait_for_the_speaker()
        _world.end_the_hanging(exit_code)
    os._exit(exit_code)


def speaks():
    """Whether this rank is the one to say something: the first of those that are alive."""
    return _world is None or _world.rank == _world.speaker()


def on_this_machine():
    """How many ranks there are on this rank's machine."""
    return 1 if _world is None else sum(machine == _machine() for machine, *_ in _world.places)


def cores():
    """How many cores there are for this rank: its share of those that the ranks on this machine may use."""
    if _world is None:
        return len(_own_cores())
    here = [may_use for machine, _, may_use in _world.places if machine == _machine()]
    return max(1, len(frozenset.union(*here)) // len(here))


def machines():
    """The host name of each rank's machine."""
    return [socket.gethostname()] if _world is None else [machine[0] for machine, *_ in _world.places]


@contextlib.contextmanager
def alone():
    """Within the block this process computes by itself, as if it were the only one."""
    global rank, size
    before, (rank, size) = (rank, size), (0, 1)
    try:
        yield
    finally:
        rank, size = before


@contextlib.contextmanager
def without_weight(really=True):
    """Within the block nothing that this rank computes counts: it has no picture of this batch, and computes along."""
    global _weightless
    before, _weightless = _weightless, really and size > 1
    try:
        yield
    finally:
        _weightless = before


# What belongs to a rank -----------------------------------------------------------------------------------------------


def share(count, of=None):
    """The slice of a batch of `count` that is this rank's, or rank `of`'s; empty where there are more ranks."""
    which = rank if of is None else of
    return slice(count * which // size, count * (which + 1) // size)


def place(count):
    """How many pictures the ranks before this one have, which has `count`; and how many there are in all."""
    if size == 1:
        return 0, count
    counts = _gather(np.array([0 if _weightless else count]))[:, 0]
    return (0 if _weightless else int(counts[:rank].sum())), int(counts.sum())


# Sums over the batch --------------------------------------------------------------------------------------------------


def sum_over_ranks(*arrays):
    """The sum of what each rank has, in the order of the ranks: an array, or a list for several of one dtype and shape.

    Args:
        arrays: NumPy's or CuPy's, or numbers; they are left alone.
    """
    if size == 1:
        return arrays[0] if len(arrays) == 1 else list(arrays)
    sent = np.ascontiguousarray([_on_host(array) for array in arrays])
    if _weightless:
        sent = np.zeros_like(sent)
    summed = [
        _like(total, array) if is_array(array) else total.item()
        for array, total in zip(arrays, _sum(sent), strict=True)
    ]
    return summed[0] if len(arrays) == 1 else summed


def pools():
    """Whether batch norm's sums are over more than this rank's pictures."""
    return size > 1 and not local_batch_norm


def pooled_moments(mean, var, count):
    """Mean, biased variance and number of all ranks' values, (BN.11) and (BN.12), from those of this rank's.

    Args:
        mean, var: a value a channel, of one shape.
        count: values a channel that they are of.

    Returns:
        The same for all ranks together; just what was given for `local_batch_norm`.
    """
    return (mean, var, count) if local_batch_norm else _pool(mean, var, count)


def pooled_mean(mean, count):
    """Of `pooled_moments` the mean and the number alone."""
    mean, _, count = pooled_moments(mean, mean, count)
    return mean, count


def moments_to_track(mean, var, count):
    """Mean, biased variance and number of all ranks' values, for batch norm's running statistics.

    Args:
        mean, var: what `pooled_moments` gave last: this rank's own for `local_batch_norm`.
        count: values a channel of this rank.
    """
    if local_batch_norm:
        return _pool(mean, var, count)
    own, of_all = _counts  # for every map of a batch they are alike: a message for the number is not needed
    return mean, var, count if size == 1 else count * of_all // own


def pooled_sums(*sums):
    """The sums of batch norm's backward (BN.5), (BN.6) over all ranks; just what was given for `local_batch_norm`."""
    if local_batch_norm:
        return sums[0] if len(sums) == 1 else list(sums)
    return sum_over_ranks(*sums)


def _pool(mean, var, count):
    if size == 1:
        return mean, var, count
    global _counts
    channels, sent = mean.size, np.empty(2 * mean.size + 1)
    sent[:channels], sent[channels:-1] = _on_host(mean).ravel(), _on_host(var).ravel()
    sent[-1] = count
    found = _gather(np.zeros_like(sent) if _weightless else sent)
    counts = found[:, -1:]
    total = counts.sum()
    weights, means, variances = counts / total, found[:, :channels], found[:, channels:-1]
    pooled = (weights * means).sum(axis=0)  # (BN.11)
    spread = (weights * (variances + (means - pooled) ** 2)).sum(axis=0)  # (BN.12)
    _counts = count, int(total)
    return _like(pooled, mean), _like(spread, var), int(total)


def sum_gradients(parameters):
    """Make every parameter's gradient the sum of all ranks' gradients: one message, once a step, after backward.

    Nothing is divided: the loss is a mean over all ranks' pictures already.
    """
    if size == 1:
        return
    gradients = [parameter.grad for parameter in parameters]
    for dtype in {gradient.dtype: None for gradient in gradients}:
        alike = [gradient for gradient in gradients if gradient.dtype == dtype]
        count = sum(gradient.size for gradient in alike)
        flat, start = np.zeros(-(-count // size) * size, dtype), 0
        for gradient in () if _weightless else alike:
            flat[start : start + gradient.size] = _on_host(gradient).reshape(-1)
            start += gradient.size
        summed, start = _sum(flat), 0
        for gradient in alike:
            part = summed[start : start + gradient.size].reshape(gradient.shape)
            gradient[...] = to_device(part, device_of(gradient))
            start += gradient.size


# Agreeing -------------------------------------------------------------------------------------------------------------


def largest(number):
    """The largest of all ranks' numbers."""
    return number if size == 1 else _gather(np.array([number])).max().item()


def from_first(make, wait=None):
    """What `make()` returns on rank 0, on every rank; the others wait without an end, or for so many seconds.

    Rank 0 computes it `alone`. What it raises is raised there, and rank 0 then tells the others (`leave`).
    """
    if size == 1:
        return make()

    def make_alone():
        with alone():
            return make()

    return _world.from_first(make_alone, wait)


def those_that_differ(digest):
    """The ranks whose bytes are not those of rank 0."""
    if size == 1:
        return []
    found = _gather(np.frombuffer(digest, np.uint8))
    return [other for other in range(size) if (found[other] != found[0]).any()]


def _on_host(array):
    return to_device(array, "cpu") if is_array(array) else np.asarray(array)


def _like(array, other):
    return to_device(np.asarray(array, other.dtype).reshape(other.shape), device_of(other))


def _gather(array):
    """(R, …): every rank's array."""
    return _world.gather(np.ascontiguousarray(array))


def _sum(array):
    """The sum of every rank's array, in the order of the ranks, one after the other."""
    if size * array.nbytes > SMALL and array.ndim == 1 and array.size % size == 0:
        mine = _world.exchange(array).reshape(size, -1)  # each rank adds up its share of the places
        return _world.gather(_in_order(mine)).reshape(-1)
    return _in_order(_gather(array))


def _in_order(arrays):
    total = arrays[0].copy()
    for array in arrays[1:]:
        total += array
    return total


# Messages -------------------------------------------------------------------------------------------------------------


class _World:
    """All ranks: how they exchange arrays, and what they do when one does not answer.

    A wait ends in one of four ways: the message comes; another rank tells what went wrong there; a process on this machine
    is found dead; time is up. The last three are a `RankFailed`.
    """

    FAILED, HERE = 1, 2  # kinds of messages beside the exchanges

    def __init__(self, mpi, wait):
        self.mpi, self.limit, self.steps = mpi, wait, 0
        self.comm, self.aside = mpi.COMM_WORLD, mpi.COMM_WORLD.Dup()
        self.rank, self.size = self.comm.rank, self.comm.size
        self.gone: set[int] = set()
        self.places = self.comm.allgather((_machine(), os.getpid(), _own_cores()))

    def gather(self, array):
        """(R, …): every rank's array."""
        found = np.empty((self.size, *array.shape), array.dtype)
        self._finish(self.comm.Iallgather(array, found), array.nbytes)
        return found

    def exchange(self, array):
        """What each rank has for this one: array is (R · n,), the part for each rank in order."""
        found = np.empty_like(array)
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
        machine, process, _ = self.places[self.speaker()]
        while time.monotonic() < until and (machine != _machine() or _is_alive(process)):
            time.sleep(PATIENCE)

    def end_the_hanging(self, exit_code):
        """Kill those on this machine that did not come; where one is elsewhere, let MPI end all."""
        for other in self.gone:
            machine, process, _ = self.places[other]
            if machine != _machine():
                self.comm.Abort(exit_code)
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)

    def _finish(self, request, count, limit=None):
        """Wait until the exchange is done."""
        self.steps += 1
        traffic.messages, traffic.bytes = traffic.messages + 1, traffic.bytes + count
        begun = time.perf_counter()
        for _ in range(POLLS):
            if request.Test():
                break
        else:
            self._wait(request, self.limit if limit is None else limit)
        traffic.seconds += time.perf_counter() - begun

    def _wait(self, request, limit):
        begun = looked = time.monotonic()
        while not request.Test():
            now = time.monotonic()
            if now - begun < PATIENCE:
                time.sleep(0)  # another rank may need this core
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
        here = _machine()
        for other, (machine, process, _) in enumerate(self.places):
            if machine == here and other != self.rank and not _is_alive(process):
                self.gone.add(other)
        return self.gone

    def _raise_dead(self):
        if self.aside.Iprobe(tag=self.FAILED):  # it said why
            self._raise_told()
        named = _names(sorted(self.gone), lambda other: f" (process {self.places[other][1]})")
        raise RankFailed(f"{named} ended without a word: killed, by somebody or for lack of memory")

    def _accuse(self, limit):
        """Say who did not come: those that do not answer within three seconds that they are here too."""
        until = time.monotonic() + 3
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


def _machine():
    """What processes that can see each other have in common."""
    try:
        return socket.gethostname(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname(), ""


def _own_cores():
    """Numbers of the cores that this process may use."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def _is_alive(process):
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"  # ended, and nobody has asked how
    except ProcessLookupError:
        return False
    except OSError:  # no /proc, or another user's
        return True


if hasattr(os, "register_at_fork"):

    def _after_fork():
        """A forked child is no rank."""
        global rank, size, _world
        rank, size, _world = 0, 1, None

    os.register_at_fork(after_in_child=_after_fork)
