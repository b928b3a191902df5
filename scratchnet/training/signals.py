"""Signals that ask a run to stop wait for the end of the step."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(Exception):
    """A signal asked the run to stop; the checkpoint was written."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def waiting_signals(remember: Callable[[int], None]) -> Iterator[None]:
    """SIGINT and SIGTERM only call `remember` with their number; the handlers from before come back afterwards.

    A terminal that is closed (SIGHUP) ends nothing: the log in the folder goes on.
    """
    handlers: dict = dict.fromkeys((signal.SIGINT, signal.SIGTERM), lambda number, _frame: remember(number))
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = signal.SIG_IGN
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
