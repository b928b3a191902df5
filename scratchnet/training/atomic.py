"""Files that are whole or absent: written beside the old one, made durable, then renamed over it.

    write <name>.tmp.<pid>  →  flush, fsync: the bytes are on the disk  →  os.replace, which is atomic  →  fsync of the
    folder: the new name is on the disk

Killed at any instant, or on a full disk, the file is the old one or the new one. What a killed process leaves under a
temporary name, `remove_leftovers` of a later one takes away.
"""

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

Check = Callable[[], None] | None


@contextlib.contextmanager
def atomic_file(
    path: str | os.PathLike[str], keep: str | Path | None = None, check: Check = None
) -> Iterator[BinaryIO]:
    """A file to write into, that takes the place of `path` when the block ends well, and never before.

    Args:
        path: the file to make or to replace.
        keep: another name in the same folder, at which to leave the file that was at `path`; None lets it go.
        check: raises where the folder is no longer the one to write into. It is called when the temporary file is there:
            if the folder is moved before, it notices; if after, the temporary file went with it, and nothing is renamed.

    Raises:
        OSError: with the name of `path`; what was at `path` is still there, or already at `keep`.
    """
    path = Path(path)
    names = [path] if keep is None else [path, Path(keep)]
    try:
        with open(_temporary(path), "wb") as file:
            if check:
                check()
            yield file
            file.flush()
            os.fsync(file.fileno())
        _put_in_place(*names)
    except BaseException as error:
        for name in names:
            with contextlib.suppress(OSError):
                _temporary(name).unlink()
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names no file
        raise


def write_json(path: str | Path, value: Any, check: Check = None) -> None:
    """Write what JSON can hold, by `atomic_file`."""
    with atomic_file(path, check=check) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file: reading a pipe or a device might wait, or go on, for ever.

    Raises:
        OSError: it cannot be read, or is something else than a file.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(None, "it is no regular file", str(path))
        return file.read()


def remove_leftovers(folder: str | Path) -> None:
    """Remove what killed processes were writing in `folder`: `*.tmp.<pid>` where no process has that pid."""
    if os.name != "posix":  # elsewhere os.kill ends the process that it is asked about
        return
    for path in Path(folder).glob("*.tmp.*"):
        pid = path.suffix[1:]
        if pid.isascii() and pid.isdigit():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                path.unlink(missing_ok=True)
            except (OSError, OverflowError):
                pass  # somebody else's process, or no pid at all


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp.{os.getpid()}")


def _put_in_place(path: Path, keep: Path | None = None) -> None:
    """Rename so that after every single call there is a whole file at `path` or at `keep`.

    The old file gets a second name first, so that `path` is never absent, and takes that of `keep` only when the new
    one is at `path`: if the file at `path` is damaged, the one at `keep` is the only whole one until then.
    """
    if keep is not None and not path.exists():
        keep = None
    if keep is not None:
        aside = _temporary(keep)
        aside.unlink(missing_ok=True)
        try:
            os.link(path, aside)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, aside)
    os.replace(_temporary(path), path)
    if keep is not None:
        os.replace(_temporary(keep), keep)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
