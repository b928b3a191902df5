"""Opening files that somebody else named: a pipe or a device in place of a file is refused, and nothing waits for it."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"))  # what this system has of them


class DataError(ValueError):
    """The data is missing, damaged or not what it should be; the message is one sentence for the user."""


def open_regular(path: str | os.PathLike[str], write: bool = False) -> BinaryIO:
    """Open a regular file at its beginning.

    Args:
        path: the file.
        write: open it to read and to write, and make it if it is not there. A link is then refused: somebody may have
            planted it so that another file is overwritten.

    Raises:
        OSError: it cannot be opened, or it is a folder, pipe, socket or device.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) if write else os.O_RDONLY
    try:
        descriptor = os.open(path, flags | _FLAGS, 0o666)
    except OSError as error:
        if write and error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link", os.fspath(path)) from None
        raise
    status = os.fstat(descriptor)
    is_file = stat.S_ISREG(status.st_mode)
    if not is_file or write and status.st_nlink > 1:
        os.close(descriptor)
        wrong = "it is a hard link to another file" if is_file else "it is no regular file"
        raise OSError(errno.EINVAL, wrong, os.fspath(path))
    return os.fdopen(descriptor, "r+b" if write else "rb")


def one_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def require_size(what: str | os.PathLike[str], size: int, least: int, most: int | None = None) -> None:
    """Raise DataError unless `what`, which opens the message, has as many bytes as expected: `least`, or up to `most`."""
    if not least <= size <= (least if most is None else most):
        expected = f"exactly {least:,}" if most in (None, least) else f"{least:,} to {most:,}"
        raise DataError(f"{what} has {size:,} bytes; expected {expected}")


def read_sized(path: Path, least: int, most: int, of: str) -> bytes | None:
    """The content of a file that has to have `least` to `most` bytes, looked at before one is read; None: there is none.

    Raises:
        DataError: it has another size, or cannot be read; `of` says what was expected in it.
    """
    try:
        with open_regular(path) as file:
            require_size(path, os.fstat(file.fileno()).st_size, least, most)
            raw = file.read(most)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read {path}: {one_line(error)}; expected {least:,} bytes of {of}") from error
    require_size(path, len(raw), least, most)
    return raw


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path, in which ~ and ~name are home folders."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user, or a container's user without an entry in passwd and without $HOME
        raise DataError(f"{path} is in a home folder that cannot be found; expected a path without ~") from None
