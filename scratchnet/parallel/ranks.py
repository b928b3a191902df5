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
import sys
from typing import Any

import numpy as np

from scratchnet.array import to_device
from scratchnet.device import device_of, get_array_module, is_array, one_card
from scratchnet.parallel.world import RankFailed, Traffic, World, machine, own_cores

rank, size = 0, 1
WAIT = 120.0  # seconds, the longest that a rank waits for another, but where it is told to wait longer
STARTED_BY = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MPI_LOCALRANKID")  # what mpiexec and srun set


traffic = Traffic()  # what this rank has sent since the beginning
local_batch_norm = False  # whether batch norm takes each rank's own statistics, as in PyTorch without SyncBatchNorm
_world: Any = None
_weightless = False
_flats: dict = {}  # of `sum_gradients`
_counts = 1, 1  # values a channel in the last exchange of moments: of this rank, of all


def was_started():
    """Whether something like mpiexec started this process as one of several."""
    return any(name in os.environ for name in STARTED_BY)


def start(wait=WAIT):
    """Become one of the ranks that this process was started as: by `mpiexec -n R python …`, or by srun.

    Where it was started alone nothing changes. Called before anything is computed; called again, it only sets `wait`. Of a
    machine's cards each rank sees one from then on.

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
        _world = World(MPI, wait, traffic)
        rank, size = _world.rank, _world.size
        one_card(sum(where == machine() for where, *_ in _world.places[:rank]))  # a card a rank, where there are cards
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
    return 1 if _world is None else sum(where == machine() for where, _ in _world.places)


def cores():
    """How many cores there are for this rank: its share of those that the ranks on this machine may use."""
    if _world is None:
        return len(own_cores())
    here = [may_use for (where, _), may_use in zip(_world.places, _world.cores, strict=True) if where == machine()]
    return max(1, len(frozenset.union(*here)) // len(here))


def machines():
    """The host name of each rank's machine."""
    places = [(machine(),)] if _world is None else _world.places
    return [name for (name, _), *_ in places]


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
    total, *others = _gather(sent)
    for other in others:
        total += other
    summed = [_like(part, array) if is_array(array) else part.item() for array, part in zip(arrays, total, strict=True)]
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
    """Make every parameter's gradient the sum of all ranks' gradients: in one flat array, once a step, after backward.

    Frozen ones have none, and are left out. Nothing is divided: the loss is a mean over all ranks' pictures already.
    """
    if size == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.requires_grad]
    for dtype in {gradient.dtype: None for gradient in gradients}:
        alike = [gradient for gradient in gradients if gradient.dtype == dtype]
        cards = _world.cards_for(alike[0])
        flat, start = _flat(sum(gradient.size for gradient in alike), dtype, alike[0] if cards else None), 0
        for gradient in alike:
            place = flat[start : start + gradient.size]
            place[:] = 0 if _weightless else to_device(gradient, device_of(flat)).reshape(-1)
            start += gradient.size
        cards.sum(flat) if cards else _sum_in_place(flat)
        start = 0
        for gradient in alike:
            part = flat[start : start + gradient.size].reshape(gradient.shape)
            gradient[...] = to_device(part, device_of(gradient))
            start += gradient.size


def _flat(count, dtype, like):
    """An array for so many numbers, and zeros up to a multiple of the ranks: the same one in every step."""
    key = count, dtype, like is None
    if key not in _flats:
        _flats[key] = get_array_module(like).zeros(-(-count // size) * size, dtype)
    return _flats[key]


def _sum_in_place(flat):
    """Make `flat` the sum of every rank's: each adds up its share of the places, in the order of the ranks."""
    first, *others = _world.exchange(flat).reshape(size, -1)
    for other in others:
        first += other
    _world.gather(first, flat.reshape(size, -1))


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


if hasattr(os, "register_at_fork"):

    def _after_fork():
        """A forked child is no rank."""
        global rank, size, _world
        rank, size, _world = 0, 1, None

    os.register_at_fork(after_in_child=_after_fork)
