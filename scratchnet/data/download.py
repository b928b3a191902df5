"""One file from the web: bounded in time, resumed where it broke off, checked, and in its place only when it is whole.

The bytes go to `<target>.part`. Only when all are there and their SHA-256 is right does the file get its name, in one
step, so that whoever finds it under that name can rely on it. There is one attempt: a program that tries again and
again keeps its user waiting and a struggling server busy. Who writes holds a lock on `<target>.part`, which the system
takes back however the process ends; whoever comes second waits for the first, and then finds the file there.
"""

import hashlib
import os
import queue
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from scratchnet.data.files import one_line, open_regular

try:
    import fcntl
except ImportError:  # Windows, where a second download does not wait, and the first to end wins
    fcntl = None  # type: ignore[assignment]

CHUNK = 1 << 18  # bytes


class DownloadError(OSError):
    """A file could not be had; the message says why in one line."""


def fetch(url: str, target: Path, *, size: int, sha256: str, timeout: float = 10.0, progress: bool = True) -> None:
    """Have `url` at `target`, going on from `<target>.part` if an earlier attempt left one.

    Nothing is done where the file is there and whole; where another one is there, it is replaced once there is a whole
    one to replace it with.

    Args:
        url: http or https; the environment's proxy settings apply.
        target: the file to make; its folder is made too.
        size: expected length in bytes.
        sha256: expected hash, 64 hex digits.
        timeout: seconds to the first byte, name lookup and connecting included, and then between bytes. Another
            process that is downloading the file is given three times as long without a new byte.
        progress: whether to show a bar, where standard error is a terminal.

    Raises:
        DownloadError: no connection, no answer in time, a broken connection (what came is kept for the next attempt),
            another file than expected (it is deleted), or no place to write to.
    """
    part = target.with_name(target.name + ".part")
    quiet = not (progress and sys.stderr and sys.stderr.isatty())
    try:
        if _is_whole(target, size, sha256):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part, size, 3 * timeout, quiet) as file:
            if _is_whole(target, size, sha256):  # by now, thanks to another process
                return
            if os.fstat(file.fileno()).st_size != size:  # else an earlier attempt ended just before the check
                _receive(url, file, target.name, size, timeout, quiet)
            found = _sha256(file)
            if fcntl is None:
                file.close()  # Windows neither renames nor removes an open file
            if found != sha256:
                part.unlink()
                raise DownloadError(f"what came is another file: its SHA-256 is {found}, expected {sha256}")
            os.replace(part, target)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"cannot write {part}: {one_line(error)}") from error


@contextmanager
def _locked(part: Path, size: int, patience: float, quiet: bool) -> Iterator[BinaryIO]:
    """The file at `part`, open to read and write, and locked; in the end it is removed if nothing is in it.

    Raises:
        DownloadError: another process has the lock, and for `patience` seconds the file has not become longer.
        OSError: it cannot be opened.
    """
    ours = False
    while not ours:
        with open_regular(part, write=True) as file:
            if not _lock(file):
                with tqdm(total=size, unit="B", unit_scale=True, desc="another download", disable=quiet) as bar:
                    _await_lock(file, part, patience, bar)
            ours = _is_at(file, part)  # or else the other process has renamed or removed what we opened
            if ours:
                try:
                    yield file
                finally:
                    with suppress(OSError):
                        if not file.closed and _is_at(file, part) and not os.fstat(file.fileno()).st_size:
                            part.unlink()


def _await_lock(file, part, patience, bar):
    have, deadline = -1, 0.0
    while not _lock(file):
        if (now := os.fstat(file.fileno()).st_size) != have:
            have, deadline = now, time.monotonic() + patience
            bar.n = have
            bar.refresh()
        if time.monotonic() > deadline:
            raise DownloadError(f"another process holds {part}, and nothing came for {patience:g} s")
        time.sleep(0.05)


def _lock(file):
    """Whether the file is now ours alone, as far as the file system can lock."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
    return True


def _is_at(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _is_whole(path, size, sha256):
    """Whether the file is there and the one that is wanted."""
    try:
        with open_regular(path) as file:
            return os.fstat(file.fileno()).st_size == size and _sha256(file) == sha256
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DownloadError(f"cannot read {path}: {one_line(error)}") from error


def _receive(url, file, name, size, timeout, quiet):
    """Append to `file` until it holds `size` bytes; start over if it holds more or the server cannot resume."""
    have = os.fstat(file.fileno()).st_size
    have = have if have < size else 0
    headers = {"User-Agent": "scratchnet"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with closing(_stream(Request(url, headers=headers), timeout)) as stream:
        response, data = next(stream)
        if response.status != 206:
            have = 0
        _require_expected(response, have, size)
        file.seek(have)
        file.truncate()
        with tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=name, disable=quiet) as bar:
            while data and file.tell() <= size:
                file.write(data)
                bar.update(len(data))
                response, data = next(stream)
            file.flush()
    if (have := file.tell()) < size:
        raise DownloadError(f"the connection broke after {have:,} of {size:,} bytes; the next run goes on from there")


def _require_expected(response, have, size):
    """Refuse an answer that announces something else (a login page, an error page) before it is written anywhere."""
    if "html" in response.headers.get("Content-Type", ""):
        raise DownloadError("the server answers with a web page, not with the file")
    offset = response.headers.get("Content-Range", "")
    if have and not offset.startswith(f"bytes {have}-"):
        raise DownloadError(f"asked to go on at byte {have:,}, the server answers with {offset or 'an unnamed range'}")
    length = response.headers.get("Content-Length")
    if length is not None and length != str(size - have):
        raise DownloadError(f"the server offers {length} bytes, expected {size - have}")


def _stream(request: Request, timeout: float) -> Generator[tuple[HTTPResponse, bytes], None, None]:
    """Yield (response, bytes) until the bytes are empty, which is the end; wait at most `timeout` s for each.

    A thread does the waiting, since urllib's timeout does not cover name lookup and starts anew with every address
    tried. Where it hangs, it is left to itself: it is a daemon, closes its connection and touches no file.
    """
    inbox: queue.Queue = queue.Queue(maxsize=8)  # chunks: a slow disk slows the download and not the memory
    stop = threading.Event()

    def work():
        try:
            with urlopen(request, timeout=timeout) as response:
                data = b"-"
                while data and not stop.is_set():
                    data = response.read1(CHUNK)
                    inbox.put((response, data))
        except Exception as error:  # OSError, HTTPException, ValueError: all mean that there is no file
            inbox.put(error)
            if isinstance(error, HTTPError):
                error.close()

    threading.Thread(target=work, name="download", daemon=True).start()
    try:
        while True:
            item = inbox.get(timeout=timeout)
            if isinstance(item, Exception):
                reason = item if isinstance(item, HTTPError) else getattr(item, "reason", item)
                raise DownloadError(one_line(reason)) from item
            yield item
    except queue.Empty:
        raise DownloadError(f"{request.host} sent nothing for {timeout:g} s") from None
    finally:
        stop.set()
        while not inbox.empty():  # frees a thread that waits for room in the inbox, so that it sees `stop`
            inbox.get_nowait()


def _sha256(file):
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
