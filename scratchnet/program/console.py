"""What a run says: lines that also go to a log file, and a bar while an epoch runs.

On a terminal the bar moves; anywhere else there is none and no control characters, so that a log reads as it was written.
A terminal that goes away, or a log disk that is full, is no reason to lose a training run: what cannot be said is dropped.
"""

import contextlib
import os
import sys
from pathlib import Path

from tqdm import tqdm


class Console:
    """Says lines to standard output and, once `log_to` was called, to a file."""

    def __init__(self):
        self._early: list[str] = []  # said before it is known where the log lies
        self._log: Path | None = None
        self.interactive = sys.stderr.isatty()

    def log_to(self, path):
        """Append every line to this file from now on, those already said included."""
        self._log = Path(path)
        early, self._early = self._early, []
        for text in early:
            self._write(text)

    def say(self, text=""):
        """One line, or several."""
        try:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
        except (OSError, ValueError):  # ValueError: it was closed
            self._stop_printing()
        self._write(text)

    def error(self, text):
        """One line to standard error, and to the log where there is one."""
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)
        if self._log is not None:
            self._write(text)

    def bar(self, total, done, title):
        """A tqdm bar of `total` batches of which `done` are done; invisible where there is no terminal."""
        options = {"unit": "batch", "leave": False, "disable": not self.interactive, "file": _Deaf(sys.stderr)}
        return tqdm(total=total, initial=done, desc=title, **options)

    def _stop_printing(self):
        """Let standard output lead nowhere, so that what waits in it fails neither now nor when the program ends."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)

    def _write(self, text):
        if self._log is None:
            self._early.append(text)
            return
        with contextlib.suppress(OSError), open(self._log, "a", encoding="utf-8") as file:
            file.write(text + "\n")


class _Deaf:
    """A stream to write to that may go away: what cannot be written then is dropped."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self):
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name):
        return getattr(self._stream, name)
