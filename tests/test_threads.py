"""The thread pool: the order of a map, errors, forks, and NumPy's settings within a step."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

import scratchnet as sn
from scratchnet.parallel import threads as pool

ROOT = Path(__file__).parents[1]


@given(st.lists(st.integers(), max_size=30), st.integers(1, 4))
def test_parallel_is_map_in_order(items, threads):
    sn.set_num_threads(threads)
    assert pool.parallel(lambda item: (item, item), iter(items)) == [(item, item) for item in items]


@pytest.mark.parametrize("threads", [2, 3])
def test_parallel_computes_on_so_many_threads_at_once(threads):
    sn.set_num_threads(threads)
    together = threading.Barrier(threads)
    assert sorted(pool.parallel(lambda _: together.wait(timeout=30), range(threads))) == list(range(threads))


def test_on_one_thread_the_caller_does_everything():
    sn.set_num_threads(1)
    assert set(pool.parallel(lambda _: threading.get_ident(), range(9))) == {threading.get_ident()}


def test_a_few_slow_items_do_not_hold_up_the_rest():
    """Items are taken one by one: while one thread has the slow one, the other does all that is left."""
    sn.set_num_threads(2)
    others = threading.Semaphore(0)

    def work(k):
        if k == 0:
            for _ in range(9):
                assert others.acquire(timeout=30)
        else:
            others.release()
        return threading.get_ident()

    first, *rest = pool.parallel(work, range(10))
    assert set(rest) == {next(iter(rest))} and first != rest[0]


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("bad", [0, 3, 7])
def test_parallel_passes_an_exception_on_and_works_again(threads, bad):
    sn.set_num_threads(threads)

    def fails(k):
        if k == bad:
            raise KeyError("item", k)
        return k

    with pytest.raises(KeyError, match=rf"^\('item', {bad}\)$"):
        pool.parallel(fails, range(8))
    assert pool.parallel(lambda k: k * k, range(8)) == [k * k for k in range(8)]
    if threads > 1:  # and still on several threads
        together = threading.Barrier(2)
        pool.parallel(lambda _: together.wait(timeout=30), range(2))


def test_after_an_exception_nothing_runs_on():
    """Or a helper would still add to gradients while the caller already handles the error."""
    sn.set_num_threads(2)
    caller, helper_is_in, done = threading.get_ident(), threading.Event(), []

    def work(k):
        if threading.get_ident() == caller:
            helper_is_in.wait(timeout=30)
            raise ValueError("caller")
        helper_is_in.set()
        time.sleep(0.1)
        done.append(k)

    with pytest.raises(ValueError, match="^caller$"):
        pool.parallel(work, range(4))
    before = list(done)
    time.sleep(0.5)
    assert done == before and len(before) >= 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_parallel_inside_parallel_runs_on_the_same_thread_and_does_not_wait_for_itself(threads):
    sn.set_num_threads(threads)

    def inner(_):
        return threading.get_ident()

    def outer(k):
        return threading.get_ident(), pool.parallel(inner, range(5))

    results = []
    runner = threading.Thread(target=lambda: results.append(pool.parallel(outer, range(6))), daemon=True)
    runner.start()
    runner.join(timeout=30)
    assert not runner.is_alive(), "a nested call waits for a thread that waits for it"
    assert all(set(inside) == {outside} for outside, inside in results[0])


@pytest.mark.parametrize("n", [0, -1, 1.5, 2.0, "2", None, [2]])
def test_set_num_threads_refuses(n):
    with pytest.raises(ValueError, match="^the number of threads must be a whole number of at least 1, got "):
        sn.set_num_threads(n)
    assert sn.get_num_threads() == 2


def test_set_num_threads_refuses_true():
    with pytest.raises(ValueError, match="^the number of threads must be a whole number of at least 1, got True$"):
        sn.set_num_threads(True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of Python 3.12: forking with threads
def test_a_forked_child_computes_on_threads_of_its_own():
    sn.set_num_threads(2)
    pool.parallel(lambda k: k, range(4))  # starts the parent's threads, which a child does not get
    child = os.fork()
    if child == 0:
        os._exit(0 if pool.parallel(lambda k: k * k, range(4)) == [0, 1, 4, 9] else 1)
    deadline = time.monotonic() + 20
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            pytest.fail("the child waits for threads that it does not have")
        time.sleep(0.01)


def test_number_of_threads_is_that_of_the_cores_unless_set():
    with mock.patch.multiple(pool, _threads=None, _pool=None):
        with mock.patch.object(pool.os, "sched_getaffinity", lambda pid: {3, 4, 5}, create=True):
            assert sn.get_num_threads() == 3 and pool._pool is None
            assert pool.pool().threads == 3
            pool.pool().close()
    sn.set_num_threads(5)
    assert sn.get_num_threads() == 5


def test_reading_the_number_starts_nothing_and_leaves_blas_alone():
    code = (
        "import threading, numpy, scratchnet as sn; from threadpoolctl import threadpool_info\n"
        "blas = [lib['num_threads'] for lib in threadpool_info()]\n"
        "sn.get_num_threads()\n"
        "print(threading.active_count(), blas == [lib['num_threads'] for lib in threadpool_info()])\n"
        "sn.Sequential(sn.ReLU())(numpy.ones((1, 2)))\n"
        "print({lib['num_threads'] for lib in threadpool_info() if lib['user_api'] == 'blas'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split("\n")[:2] == ["1 True", "{1}"], done.stderr


def test_a_pool_that_was_closed_meanwhile_still_does_what_it_is_given():
    closed = pool.Pool(3).start()
    closed.close()
    deadline = time.monotonic() + 30
    while not closed._jobs.empty() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert closed.map(lambda k: k * k, range(5)) == [0, 1, 4, 9, 16]


def test_threads_that_the_system_does_not_give_leave_the_pool_as_it_was(monkeypatch):
    sn.set_num_threads(2)
    start, started = threading.Thread.start, []

    def refuse(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        sn.set_num_threads(5)
    assert sn.get_num_threads() == 2
    for thread in started:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_another_number_of_threads_while_a_thread_computes_does_not_hang():
    """Between reading the pool and handing it work, the pool may be closed."""
    interval, done = sys.getswitchinterval(), threading.Event()
    results = []

    def compute():
        while not done.is_set():
            results.append(pool.parallel(lambda k: k * k, range(6)) == [k * k for k in range(6)])

    worker = threading.Thread(target=compute, daemon=True)
    sys.setswitchinterval(1e-6)
    try:
        worker.start()
        for k in range(300):
            sn.set_num_threads(1 + k % 3)
        done.set()
        worker.join(timeout=30)
    finally:
        sys.setswitchinterval(interval)
    assert not worker.is_alive() and results and all(results)


def test_another_number_of_threads_ends_those_before():
    sn.set_num_threads(1)
    for _ in range(100):  # those of the tests before have to notice
        if not helpers():
            break
        time.sleep(0.01)
    for n in (4, 2, 3, 1):
        sn.set_num_threads(n)
        assert pool.parallel(lambda k: k + 1, range(50)) == list(range(1, 51))
    for _ in range(1000):
        if not helpers():
            return
        time.sleep(0.01)
    pytest.fail("threads of an earlier number live on")


def helpers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("scratchnet")]


def test_blas_is_held_at_one_thread():
    sn.set_num_threads(2)
    assert {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"} == {1}


# NumPy's buffer -------------------------------------------------------------------------------------------------------


class Sizes(sn.Module):
    """Takes down NumPy's buffer size, and fails where it is told to."""

    fails = False

    def forward(self, x):
        self.seen = np.getbufsize()
        if self.fails:
            raise ValueError("told to")
        return x

    backward = forward


def test_a_run_has_the_small_buffer_and_gives_the_callers_back():
    before, layer = np.getbufsize(), Sizes()
    network = sn.Sequential(layer)
    for call in (network.forward, network.backward):
        call(np.ones((2, 3, 4, 5)))
        assert (layer.seen, np.getbufsize()) == (pool.BUFFER, before)
    layer.fails = True
    with pytest.raises(ValueError, match="told to"):
        network(np.ones((2, 3, 4, 5)))
    assert np.getbufsize() == before
