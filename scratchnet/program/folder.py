"""The folder of a run: one run at a time, and a new run never overwrites an old one."""

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scratchnet.parallel import ranks
from scratchnet.training.atomic import remove_leftovers

try:
    import fcntl
except ImportError:  # not on Windows, where two runs on one folder are not noticed
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
TRACES = ("config.json", "metrics.csv", "last.npz", "last.previous.npz", "best.npz")  # what makes a folder a run's


class FolderError(OSError):
    """The folder cannot be used for this run; the message says why and what to do."""


@contextmanager
def run_folder(path, keep):
    """`RunFolder` of the first rank, taken once nothing is wrong on any rank; None on the others."""
    ranks.largest(0)  # all have come so far
    if ranks.rank:
        yield None
        return
    with RunFolder(path, keep) as folder:
        yield folder


class RunFolder:
    """A folder that this process alone writes to: `with RunFolder(path, keep) as folder: …`.

    Args:
        path: made where it is not there.
        keep: go on in it; otherwise an earlier run in it is first moved aside, to `path.1`, `path.2`, ….

    Attributes:
        path: the folder.
        moved: where the earlier run went, or None.

    Raises:
        FolderError: it cannot be made or written to, or another run is using it.
    """

    def __init__(self, path, keep):
        self.path = Path(path)
        self.keep, self.moved = keep, None
        self._file: Any = None

    def __enter__(self):
        try:
            self._lock()
            if not self.keep and any((self.path / name).exists() for name in TRACES):
                self.moved = self._move_aside()
                self._lock()
            remove_leftovers(self.path)
        except BaseException as error:  # an interrupt, too, gives the lock back
            self._unlock()
            if isinstance(error, OSError) and not isinstance(error, FolderError):
                raise FolderError(f"the output folder {self.path} cannot be used: {error.strerror or error}") from error
            raise
        return self

    def __exit__(self, *_):
        self._unlock()

    def check(self):
        """Refuse to write when the path leads to another folder than the one that was locked; to be called before.

        Raises:
            FolderError: the folder was moved, removed or replaced, or its lock was removed.
        """
        if not self._is_ours():
            raise FolderError(
                f"{self.path} is no longer the folder in which this run began: it was moved, or its {LOCK} removed. "
                "Nothing more is written; where the folder is now, --resume goes on"
            )

    def _is_ours(self):
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path / LOCK))
        except OSError:
            return False

    def _unlock(self):
        if self._file is not None:
            self._file.close()
            self._file = None

    def _lock(self):
        """Take the lock, which ends with the process at the latest, however it ends: no stale lock stays behind."""
        for _ in range(100):
            self._unlock()
            self.path.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path / LOCK, "a+b", buffering=0)
            if fcntl is None:
                return
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._file.seek(0)
                owner = self._file.read(20).strip()
                owner = owner.decode() if owner.isdigit() else "unknown"
                raise FolderError(
                    f"another run (process {owner}) is writing to {self.path}: wait for it, or choose another --out"
                ) from None
            if self._is_ours():  # else another start moved the folder away between the two calls
                self._file.truncate(0)
                self._file.write(b"%d\n" % os.getpid())
                return
        raise FolderError(f"the output folder {self.path} is replaced again and again: choose another --out")

    def _move_aside(self):
        if Path.cwd().is_relative_to(os.path.realpath(self.path)):
            raise FolderError(
                f"{self.path} holds an earlier run, and is or holds the current folder: choose another --out, or --resume"
            )
        path = Path(os.path.normpath(self.path))  # "a/.." has no name to add a number to
        path, number = path if path.name not in ("", "..") else Path(os.path.abspath(path)), 1
        while (target := path.with_name(f"{path.name}.{number}")).exists():
            number += 1
        path.rename(target)
        return target
