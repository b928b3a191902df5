"""What a run says: lines that also go to a log file, and a bar while it computes.

On a terminal the bar moves; anywhere else there is a line every half minute and no control characters, so that a log reads
as it was written. Streams that are closed, go away or lack a character, and a log disk that is full, end no training run:
what cannot be said is dropped, or written in other characters. Of several ranks one speaks, the first of those that are
alive: each has a console and says everything, and here it is decided who is heard.
"""

import codecs
import contextlib
import os
import signal
import sys
import time
import weakref
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm

from scratchnet.parallel import ranks

ALIVE = 25.0  # seconds without a line, where nobody sees the bar, until one says how far it is
STEPS, SECONDS = 10, 10.0  # of training, at least, before the time that it takes is estimated
FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
ASCII = {"×": "x", "…": "...", "–": "-"}


class Console:
    """Says lines to standard output and, once `log_to` was called, to a file."""

    def __init__(self):
        _prepare_streams()
        self._early: list[str] = []  # said before it is known where the log lies
        self._log: Any = None  # stays open: the file that it is, wherever its folder goes
        self._said = time.monotonic()
        self._steps = 0  # that a run has before it, as long as nobody has said how long they take
        self._measured = [-1, 0.0]  # steps of training since then, and their seconds, but for the first: it may compile
        self.interactive = sys.stderr.isatty()
        self._seen = self.interactive and sys.stdout.isatty()

    def log_to(self, path):
        """Append every line to this file from now on, those already said included."""
        if not ranks.speaks():
            return
        with contextlib.suppress(OSError):
            self._log = open(path, "ab", buffering=0)
            weakref.finalize(self, self._log.close)
        early, self._early = self._early, []
        for text in early:
            self._write(text)

    def say(self, text="", log=True):
        """One line, or several; without `log` they are kept in no file."""
        self._said = time.monotonic()
        if not ranks.speaks():
            return
        try:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
        except (OSError, ValueError):  # ValueError: it was closed
            self._stop_printing()
        if log:
            self._write(text)

    def error(self, text):
        """One line, whatever is in the names that it quotes, to standard error, and to the log where there is one."""
        if not ranks.speaks():
            return
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)
        if self._log is not None:
            self._write(text)

    def expect(self, steps):
        """So many steps of training lie before the run: after the first ones a line says how long they will take."""
        self._steps = steps

    def bar(self, total, done, title, training=True, unit="batches"):
        """A tqdm bar of `total` batches of which `done` are done; lines where nobody would see it."""
        return _Bar(self, total, done, title, training, unit)

    def follow(self, batches, title):
        """What `evaluate` takes in place of `batches`, with a bar."""

        def epoch(k):
            with self.bar(len(batches), 0, title, training=False) as bar:
                for batch in batches.epoch(k):
                    yield batch
                    bar.update()

        return SimpleNamespace(epoch=epoch)

    def _progress(self, bar, steps, seconds):
        """Called when a bar went on by `steps`, which took `seconds`."""
        if bar.training and self._steps:
            first = self._measured[0] < 0
            self._measured = [self._measured[0] + steps, 0.0 if first else self._measured[1] + seconds]
        if self._measured[0] >= STEPS and self._measured[1] >= SECONDS:
            each = self._measured[1] / self._measured[0]
            self.say(f"time      about {_duration(self._steps * each)} of training, {each:.2g} s a step")
            self._steps, self._measured = 0, [-1, 0.0]
        elif not self._seen and time.monotonic() - self._said >= ALIVE:
            self.say(f"{bar.title}: {bar.n} of {bar.total} {bar.what}" + (f", {bar.postfix}" if bar.postfix else ""))

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
        with contextlib.suppress(OSError):
            self._log.write((text + "\n").encode(errors="backslashreplace"))


@contextlib.contextmanager
def outlive_terminal():
    """Within the block, a terminal that is closed (SIGHUP) ends nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN) if hasattr(signal, "SIGHUP") else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGHUP, before)


class _Bar(tqdm):
    """A bar that leaves out, from the end, what its line has no room for."""

    def __init__(self, console, total, done, title, training, unit):
        self.console, self.title, self.training, self.what = console, title, training, unit
        self.postfix, self.moved = None, time.monotonic()
        super().__init__(
            total=total, initial=done, desc=title, leave=False, ncols=80, nrows=20, file=_Deaf(sys.stderr),
            disable=not (console.interactive and ranks.speaks()),
            bar_format=FORMAT,
        )  # fmt: skip

    def update(self, n=1):
        super().update(n)
        if self.disable:
            self.n += n
        before, self.moved = self.moved, time.monotonic()
        self.console._progress(self, n, self.moved - before)

    @property
    def format_dict(self):
        columns = 0
        with contextlib.suppress(OSError, ValueError):
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
        found = super().format_dict | {"ncols": (columns or 80) - 1}  # 0: a terminal that does not know its width
        parts = found["postfix"].split(", ") if found["postfix"] else []
        bare = found | {"bar_format": FORMAT.replace("{bar}", "x" * 4), "ncols": None}
        while parts and len(self.format_meter(**bare | {"postfix": ", ".join(parts)})) > found["ncols"]:
            parts.pop()
        return found | {"postfix": ", ".join(parts)}


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

    def __eq__(self, other):  # so that tqdm takes the bar away before it writes a line to the same terminal
        return self._stream == other

    def __getattr__(self, name):
        return getattr(self._stream, name)


def _prepare_streams():
    """Standard streams that were closed lead somewhere, and all can write what they have no characters for."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        while (nowhere := os.open(os.devnull, os.O_RDWR)) <= 2:  # or the next file that is opened would be the output
            pass
        os.close(nowhere)
        sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
        sys.stderr = sys.stderr or sys.stdout  # an error that is said nowhere helps nobody
    codecs.register_error("scratchnet", _replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="scratchnet")


def _replace(error):
    """For characters that a stream cannot encode: ASCII that looks alike, or their code."""
    bad = error.object[error.start : error.end]
    return "".join(ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in bad), error.end


def _duration(seconds):
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
