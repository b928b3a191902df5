"""Threads: one pool for all that is computed in parts, and how NumPy works within a step.

NumPy lets go of the interpreter's lock while it computes, so that threads share an activation with no copies. What is cut
into parts is cut the same way for any number of threads (`slabs.py`): the number decides who computes, never what.
"""

import contextvars
import os
import threading
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

import numpy as np
from threadpoolctl import threadpool_limits

BUFFER = 1024  # elements; see `short_rows`


class _Pool(threading.local):
    """The number of threads and the pool behind them; `busy` is a thread's own."""

    threads: int | None = None
    jobs: SimpleQueue = SimpleQueue()  # what the helpers, one less than the threads, take their work from
    busy = False


_pool = _Pool()


def set_num_threads(n):
    """Compute on n threads from now on.

    BLAS is held at one thread, since the pool already keeps every core busy: its own threads inside ours would only
    wait for one another. That holds for the whole process.

    Raises:
        ValueError: n is not a whole number of at least 1.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"the number of threads must be a whole number of at least 1, got {n!r}")
    threadpool_limits(1, user_api="blas")
    for _ in range((_Pool.threads or 1) - 1):
        _Pool.jobs.put(None)
    _Pool.threads, _Pool.jobs = n, SimpleQueue()
    for _ in range(n - 1):
        threading.Thread(target=_help, args=(_Pool.jobs,), name="scratchnet", daemon=True).start()


def _help(jobs):
    """Do one job after another, until one is None."""
    while (job := jobs.get()) is not None:
        job()


def get_num_threads():
    """The number of threads that layers compute on: the cores that this process may use, unless set otherwise."""
    if _Pool.threads is None:
        set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return _Pool.threads or 1


def _after_fork():
    """A forked child has the pool, but none of its threads: give it a pool of its own."""
    if _Pool.threads is not None:
        set_num_threads(_Pool.threads)
    _pool.busy = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def parallel(function, items):
    """[function(item) for item in items], on all threads; the caller is one of them."""
    items = list(items)
    threads = get_num_threads()
    if threads == 1 or len(items) < 2 or _pool.busy:
        return [function(item) for item in items]
    results = [None] * len(items)
    errors: list[BaseException] = []
    todo = iter(range(len(items)))  # taking from one range iterator is atomic under the GIL

    def work():
        _pool.busy = True  # what runs inside a slab runs on this thread
        try:
            for k in todo:
                results[k] = function(items[k])
        finally:
            _pool.busy = False

    def help_out(finished):
        try:
            work()
        except BaseException as error:  # it belongs to the caller
            errors.append(error)
        finally:
            finished.release()

    helpers = [threading.Lock() for _ in range(min(threads, len(items)) - 1)]
    for finished in helpers:
        finished.acquire()
        # A copy of the context for each: np.errstate and NumPy's buffer size hold there as they do here.
        _Pool.jobs.put(partial(contextvars.copy_context().run, help_out, finished))
    try:
        work()
    finally:
        for finished in helpers:  # also when an item failed here: nothing may run on while the caller handles the error
            finished.acquire()
    if errors:
        raise errors[0]
    return results


@contextmanager
def short_rows():
    """Let NumPy work on rows as short as BUFFER in place, and give the caller's setting back.

    Where the inner loop of an elementwise operation is shorter than about a quarter of NumPy's buffer (8192 elements),
    NumPy 2.4 copies the operands through that buffer: on rows of 1,984 numbers an addition took 0.46 ns an element, and
    takes 0.22 with the smaller buffer. The values are the same. A thread of the pool inherits the setting with its context.
    """
    before = np.setbufsize(BUFFER)
    try:
        yield
    finally:
        np.setbufsize(before)
