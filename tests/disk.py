"""A disk that fails: counts what a run in this process does to the files of a folder; a fault happens at one call.

Each call that changes something counts: making a folder, opening for writing, each half of each write, fsync, replace,
link, rename, unlink. A process that dies there does nothing more: after `Killed` every later call raises it too, and what
waits in a file's buffer never reaches the disk.
"""

import builtins
import contextlib
import errno
import io
import os


class Killed(BaseException):
    """The process ended here, as by kill -9."""


class Disk:
    """`with Disk(root, at, fault): …`.

    Args:
        root: files elsewhere do not count and do not fail.
        at: the number of the call before which the fault happens, from 1; None: never.
        fault: "kill"; "full", from this call on, for whatever needs room; "once", for this call alone; "read-only", from
            this call on, for whatever changes anything; or a function, which is called once.

    Attributes:
        calls: what was called so far, in words.
    """

    lives = 0

    def __init__(self, root, at=None, fault="kill"):
        self.root, self.at, self.fault = os.path.abspath(root), at, fault
        self.calls, self.dead, self._stack = [], False, contextlib.ExitStack()
        Disk.lives += 1
        self._pid = 2**22 + Disk.lives  # no process has it: more than Linux gives

    def __enter__(self):
        opened = self._open(io.open)
        for place, name, change in (
            [(builtins, "open", opened), (io, "open", opened)]
            + [
                (os, name, self._counted(name, getattr(os, name)))
                for name in ("mkdir", "replace", "link", "rename", "unlink", "remove", "fsync")
            ]
            + [(os, "getpid", lambda: self._pid)]
        ):
            self._stack.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, change)
        return self

    def __exit__(self, *_):
        self._stack.close()

    def tick(self, what):
        """Count a call; raises what the fault makes of it."""
        if self.dead:
            raise Killed
        self.calls.append(what)
        if self.at is None or len(self.calls) < self.at:
            return
        first = len(self.calls) == self.at
        if callable(self.fault):
            if first:
                self._stack.close()  # what it does is another process's work
                self.fault()
                self.__enter__()
        elif self.fault == "kill":
            self.dead = True
            raise Killed
        elif self.fault == "read-only":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        elif what.split()[0] in ("mkdir", "open", "write", "link") and (self.fault == "full" or first):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _is_inside(self, path):
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.root)

    def _counted(self, name, function):
        def call(*args, **kwargs):
            if name == "fsync" or self._is_inside(args[0]):
                self.tick(f"{name} {os.path.basename(args[0]) if name != 'fsync' else ''}".strip())
            return function(*args, **kwargs)

        return call

    def _open(self, function):
        def call(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
            if not set(mode) & set("wax+") or not self._is_inside(file):
                return function(file, mode, buffering, encoding, errors, newline, closefd, opener)
            self.tick(f"open {os.path.basename(file)}")
            raw = _File(self, file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

        return call


class _File(io.FileIO):
    def __init__(self, disk, path, mode):
        super().__init__(path, mode)
        self._disk, self._name = disk, os.path.basename(path)

    def write(self, data):
        if self._disk.dead:  # what waited in a buffer when the process ended
            return len(data)
        half = len(data) // 2
        self._disk.tick(f"write {self._name}")
        super().write(data[:half])
        self._disk.tick(f"write {self._name}, second half")
        return half + super().write(data[half:])
