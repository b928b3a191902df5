"""What a run says: lines that also go to a log file, and a bar while an epoch runs.

On a terminal the bar moves; anywhere else there is none and no control characters, so that a log reads as it was written.
A terminal that goes away, or a log disk that is full, is no reason to lose a training run: what cannot be said is dropped.
"""

import contextlib
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
        with contextlib.suppress(OSError, ValueError):  # ValueError: standard output was closed
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
        self._write(text)

    def bar(self, total, done, title):
        """A tqdm bar of `total` batches of which `done` are done; invisible where there is no terminal."""
        return tqdm(total=total, initial=done, desc=title, unit="batch", leave=False, disable=not self.interactive)

    def _write(self, text):
        if self._log is None:
            self._early.append(text)
            return
        with contextlib.suppress(OSError), open(self._log, "a", encoding="utf-8") as file:
            file.write(text + "\n")
