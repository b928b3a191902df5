"""One file from the web: bounded in time, resumed where it broke off, checked, and in its place only when it is whole.

The bytes go to `<target>.part`. Only when all are there and their SHA-256 is right does the file get its name, in one
step, so that whoever finds it under that name can rely on it. There is one attempt: a program that tries again and
again keeps its user waiting and a struggling server busy.
"""

import hashlib
import os
import queue
import threading
from collections.abc import Generator
from contextlib import closing
from http.client import HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

CHUNK = 1 << 18  # bytes


class DownloadError(OSError):
    """A file could not be had; the message says why in one line."""


def fetch(url: str, target: Path, *, size: int, sha256: str, timeout: float = 10.0, progress: bool = True) -> None:
    """Download `url` to `target`, going on from `<target>.part` if an earlier attempt left one.

    Args:
        url: http or https; the environment's proxy settings apply.
        target: the file to make; its folder is made too, once the first byte is there.
        size: expected length in bytes.
        sha256: expected hash, 64 hex digits.
        timeout: seconds to the first byte, name lookup and connecting included, and then between bytes.
        progress: whether to show a bar, where standard error is a terminal.

    Raises:
        DownloadError: no connection, no answer in time, a broken connection (what came is kept for the next attempt),
            another file than expected (it is deleted), or no place to write to.
    """
    part = target.with_name(target.name + ".part")
    try:
        have = part.stat().st_size if part.exists() else 0
        if have != size:  # else an earlier attempt ended just before the check
            _receive(url, part, have if have < size else 0, size, timeout, progress)
        found = _sha256(part)
        if found != sha256:
            part.unlink()
            raise DownloadError(f"what came is another file: its SHA-256 is {found}, expected {sha256}")
        os.replace(part, target)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"cannot write {part}: {error.strerror or error}") from error


def _receive(url, part, have, size, timeout, progress):
    """Append to `part`, which holds `have` bytes, until it holds `size`; start over if the server cannot resume."""
    headers = {"User-Agent": "scratchnet"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with closing(_stream(Request(url, headers=headers), timeout)) as stream:
        response, data = next(stream)
        if response.status != 206:
            have = 0
        _require_expected(response, have, size)
        part.parent.mkdir(parents=True, exist_ok=True)
        quiet = None if progress else True  # None: where standard error is no terminal
        bar = tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=quiet)
        with bar, open(part, "ab" if have else "wb") as file:
            while data and file.tell() <= size:
                file.write(data)
                bar.update(len(data))
                response, data = next(stream)
            have = file.tell()
    if have < size:
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
                raise DownloadError(" ".join(str(reason).split()) or type(item).__name__) from item
            yield item
    except queue.Empty:
        raise DownloadError(f"{request.host} sent nothing for {timeout:g} s") from None
    finally:
        stop.set()
        while not inbox.empty():  # frees a thread that waits for room in the inbox, so that it sees `stop`
            inbox.get_nowait()


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
