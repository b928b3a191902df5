"""A learner's file, and calls of what is in it: whatever goes wrong there becomes one sentence with its own line.

What it prints in the first call is kept, to be shown; printing is how many look into their code.
"""

import contextlib
import importlib.util
import io
import linecache
import re
import sys
import traceback
import warnings

import numpy as np

LONGEST = 4000  # characters of what is printed
UNFIT = re.compile(
    r"matmul: Input operand 1 has a mismatch in its core dimension 0.*\(size (\d+) is different from (\d+)\)"
)


class Problem(Exception):
    """The learner's code cannot be judged further here: one sentence, and lines below it."""

    def __init__(self, sentence, *lines):
        super().__init__(sentence)
        self.sentence, self.lines = sentence, lines


class NotWritten(Problem):
    """The body is still to be written."""


class Learner:
    """The functions of a learner's file, as attributes.

    Attributes:
        printed: what the file printed, when it was read and in the first call.
        warned: numerical warnings of its lines, each once.
    """

    def __init__(self, path, name):
        self.path, self.printed, self.warned = str(path), "", []
        self._calls = 0
        with self._watched(show=True):
            spec = importlib.util.spec_from_file_location(f"exercise_{name}", path)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            sys.path.append(str(path.parent))  # files of the learner's beside it
            spec.loader.exec_module(module)
        self.module = module

    def __getattr__(self, name):
        if name not in vars(self.module):
            raise Problem(f"there is no {name} in {self.path}: it has been renamed or removed, put it back")
        return getattr(self.module, name)

    def call(self, function, *args):
        """Call something that runs the learner's lines; raises `Problem` for whatever goes wrong there."""
        self._calls += 1
        with self._watched(show=self._calls <= 2):  # the first forward, and its backward
            return function(*args)

    @contextlib.contextmanager
    def _watched(self, show):
        printed = _Limited()
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), _warnings() as caught:
                yield
        except Problem:
            raise
        except BaseException as error:  # a learner's code may also call sys.exit, or raise KeyboardInterrupt
            raise self._problem(error) from error
        finally:
            self.printed += printed.getvalue() if show else ""
            for warning in caught:
                if warning.filename == self.path:
                    text = f"line {warning.lineno}: {warning.category.__name__}: {warning.message}"
                    self.warned += [text] * (text not in self.warned)

    def _problem(self, error):
        if isinstance(error, SyntaxError) and error.filename == self.path:
            return Problem(f"line {error.lineno}: {error.msg}: Python cannot read the file", *_shown(error.text))
        if isinstance(error, SyntaxError | UnicodeDecodeError | ValueError) and not self._line(error):
            return Problem(f"Python cannot read the file: {error}")
        place = self._line(error)
        if isinstance(error, NotImplementedError) and place:
            return NotWritten(f"line {place[0]}: not written yet")
        at = f"line {place[0]}: " if place else ""
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if sizes := UNFIT.search(said):
            said = (
                f"ValueError: {sizes[2]} and {sizes[1]} do not fit: in A @ B the rows of B are as many as A's columns"
            )
        if isinstance(error, SystemExit):
            said = "the program is ended here (exit): return a value instead"
        if isinstance(error, RecursionError):
            said = "RecursionError: it calls itself without end"
        if isinstance(error, MemoryError):
            said = "MemoryError: it asks for more memory than there is"
        return Problem(at + said.splitlines()[0], *_shown(place and place[1]))

    def _line(self, error):
        """(number, text) of the learner's own line that an error comes through, the innermost."""
        with contextlib.suppress(Exception):
            for frame in reversed(traceback.extract_tb(error.__traceback__)):
                if frame.filename == self.path and frame.lineno:
                    return frame.lineno, frame.line or linecache.getline(self.path, frame.lineno)
        return None


def _shown(text):
    return (f"    {text.strip()}",) if text and text.strip() else ()


@contextlib.contextmanager
def _warnings():
    with warnings.catch_warnings(record=True) as caught, np.errstate(divide="warn", over="warn", invalid="warn"):
        warnings.simplefilter("always")
        yield caught


class _Limited(io.StringIO):
    """Keeps the first part of what is written."""

    def write(self, text):
        room = LONGEST - self.tell()
        if room > 0:
            super().write(text[:room] + ("\n… (more was printed)\n" if len(text) > room else ""))
        return len(text)
