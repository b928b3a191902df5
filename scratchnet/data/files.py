"""Opening files that somebody else named: a pipe or a device in place of a file is refused, and nothing waits for it."""

import errno
import os
import stat
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


def require_size(what: str | os.PathLike[str], size: int, expected: int) -> None:
    """Raise DataError unless `what`, which opens the message, has as many bytes as expected."""
    if size != expected:
        raise DataError(f"{what} has {size:,} bytes; expected exactly {expected:,}")
