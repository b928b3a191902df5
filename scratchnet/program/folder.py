"""The folder of a run: one run at a time, and a new run never overwrites an old one."""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where two runs on one folder are not noticed
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
TRACES = ("config.json", "metrics.csv", "last.npz", "last.previous.npz", "best.npz")  # what makes a folder a run's


class FolderError(OSError):
    """The folder cannot be used for this run; the message says why and what to do."""


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
        self._file = None

    def __enter__(self):
        try:
            self._lock()
            if not self.keep and any((self.path / name).exists() for name in TRACES):
                self.moved = self._move_aside()
                self._lock()
        except FolderError:
            self._unlock()
            raise
        except OSError as error:
            self._unlock()
            raise FolderError(f"the output folder {self.path} cannot be used: {error.strerror or error}") from error
        return self

    def __exit__(self, *_):
        self._unlock()

    def _unlock(self):
        if self._file is not None:
            self._file.close()
            self._file = None

    def _lock(self):
        """Take the lock, which ends with the process at the latest, however it ends: no stale lock stays behind."""
        self._unlock()
        self.path.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path / LOCK, "a+")
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            raise FolderError(
                f"another run (process {owner}) is writing to {self.path}: wait for it, or choose another --out"
            ) from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def _move_aside(self):
        number = 1
        while (target := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        self.path.rename(target)
        return target
