"""Threads: one pool for all that is computed in parts, and how NumPy works within a step.

NumPy lets go of the interpreter's lock while it computes, so that threads share an activation with no copies. What is cut
into parts is cut the same way for any number of threads (`cuts.py`): the number decides who computes, never what.
"""

import contextvars
import os
import threading
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

import numpy as np
from threadpoolctl import threadpool_limits

BUFFER = 1024  # elements; see `computing`


class Pool:
    """So many threads, the caller's among them; the others wait at a queue."""

    def __init__(self, threads):
        self.threads = threads
        self._jobs: SimpleQueue = SimpleQueue()

    def start(self):
        """Start the other threads, and hold BLAS at one, in the whole process: its own would only wait for ours."""
        threadpool_limits(1, user_api="blas")
        for _ in range(self.threads - 1):
            threading.Thread(target=_do, args=(self._jobs,), name="scratchnet", daemon=True).start()
        return self

    def close(self):
        """Let the other threads end when they have done what they were given."""
        for _ in range(self.threads - 1):
            self._jobs.put(None)

    def map(self, function, items):
        """[function(item) for item in items], on all threads; the caller is one of them."""
        results = [None] * len(items)
        errors: list[BaseException] = []
        todo, one_by_one = iter(range(len(items))), threading.Lock()

        def work():
            _thread.busy = True  # what runs inside a part runs on this thread
            try:
                while True:
                    with one_by_one:
                        k = next(todo, None)
                    if k is None:
                        return
                    results[k] = function(items[k])
            finally:
                _thread.busy = False

        def help_out(taken, done):
            if taken.acquire(blocking=False):  # else the caller was sooner
                try:
                    work()
                except BaseException as error:  # it belongs to the caller
                    errors.append(error)
                finally:
                    done.release()

        helpers = [(threading.Lock(), threading.Lock()) for _ in range(min(self.threads, len(items)) - 1)]
        for taken, done in helpers:
            done.acquire()
            # A copy of the context for each: np.errstate and NumPy's buffer size hold there as they do here.
            self._jobs.put(partial(contextvars.copy_context().run, help_out, taken, done))
        try:
            work()
        finally:  # also when an item failed here: nothing may run on while the caller handles the error
            for taken, done in helpers:
                if not taken.acquire(blocking=False):  # a helper is at it; one of a closed pool never will be
                    done.acquire()
        if errors:
            raise errors[0]
        return results


def _do(jobs):
    """One job after another, until one is None."""
    while (job := jobs.get()) is not None:
        job()


_thread = threading.local()  # .busy: whether this thread is at work on a part
_setting = threading.Lock()
_threads: int | None = None  # as set; None: the number of cores
_pool: Pool | None = None


def set_num_threads(n):
    """Compute on n threads from now on; BLAS is held at one thread (`Pool.start`). A step that runs ends on its old pool.

    Raises:
        ValueError: n is not a whole number of at least 1.
        RuntimeError: the system does not give so many threads; what was set before holds.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"the number of threads must be a whole number of at least 1, got {n!r}")
    global _threads, _pool
    with _setting:
        before, new = _pool, Pool(n)
        try:
            new.start()
        except RuntimeError:  # the system gives no more threads: those that it gave are to end
            new.close()
            raise
        _threads, _pool = n, new
    if before is not None:
        before.close()


def get_num_threads():
    """The number of threads that layers compute on: the cores that this process may use, unless set otherwise."""
    if _threads:
        return _threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pool():
    """The `Pool` that computes, started when first asked for."""
    if _pool is None:
        set_num_threads(get_num_threads())
    return _pool


def _after_fork():
    """A forked child has the pool, but none of its threads: it is to start one of its own."""
    global _pool, _setting
    _pool, _setting = None, threading.Lock()
    _thread.busy = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def parallel(function, items):
    """[function(item) for item in items], on the pool's threads; inside a part, on the thread that does the part."""
    items = list(items)
    if len(items) < 2 or getattr(_thread, "busy", False) or (workers := pool()).threads == 1:
        return [function(item) for item in items]
    return workers.map(function, items)


@contextmanager
def computing():
    """Start the pool, let NumPy work on rows as short as BUFFER in place, and give the caller's setting back.

    Where the inner loop of an elementwise operation is shorter than about a quarter of NumPy's buffer (8192 elements),
    NumPy 2.4 copies the operands through that buffer: on rows of 1,984 numbers an addition took 0.46 ns an element, and
    takes 0.22 with the smaller buffer. The values are the same. A thread of the pool inherits the setting with its context.
    """
    pool()
    before = np.setbufsize(BUFFER)
    try:
        yield
    finally:
        np.setbufsize(before)
