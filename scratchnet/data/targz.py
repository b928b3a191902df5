"""Files in a `.tar.gz`, read into memory by name, with every size checked before a byte is taken for it.

`TarInfo.frombuf` reads one header of 512 bytes, zlib decompresses; the walk from one header to the next is ours. The
one in tarfile believes any size, and where a header says 2^60 bytes it goes on reading behind the end of the file for
hours. Extended headers (pax, GNU's long names) are skipped like the content of any other file: what is looked for here
has short names and small sizes.
"""

import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from scratchnet.data.files import DataError, one_line, open_regular, require_size

CHUNK = 1 << 18  # bytes


def read_members(archive: Path, sizes: Mapping[str, tuple[int, int]], limit: int) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the regular files that are asked for, in the archive's order.

    Args:
        archive: the `.tar.gz`.
        sizes: path of each in it, exactly as it stands there -> the least and the most bytes that it may have.
        limit: bytes that the whole archive may have, decompressed.

    Raises:
        DataError: it cannot be read, is damaged anywhere, or holds something else under one of the names.
    """
    try:
        with open_regular(archive) as file:
            stream = _Unzipped(file, limit, archive)
            while (header := stream.read(tarfile.BLOCKSIZE)).strip(b"\0"):
                member = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
                if member.name in sizes:
                    yield member.name, _read_member(stream, member, archive, *sizes[member.name])
                    stream.skip(-member.size % tarfile.BLOCKSIZE)
                elif member.type not in b"123456":  # links, devices, folders and pipes have no content
                    stream.skip(member.size + -member.size % tarfile.BLOCKSIZE)
            stream.finish()
    except OSError as error:
        raise DataError(f"cannot read {archive}: {one_line(error)}; expected a .tar.gz") from error
    except (EOFError, zlib.error, tarfile.TarError) as error:
        message = f"{archive} is damaged ({one_line(error)}); expected an intact .tar.gz: delete it and get it again"
        raise DataError(message) from error


def _read_member(stream, member, archive, least, most):
    where = f"{member.name} in {archive}"
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise DataError(f"{where} is a link, device or sparse file; expected a regular file of {least:,} bytes")
    require_size(where, member.size, least, most)
    raw = stream.read(member.size)
    require_size(where, len(raw), member.size)
    return raw


class _Unzipped:
    """The content of a gzip file, front to back, that never decompresses to more than `limit` bytes."""

    def __init__(self, file, limit, archive):
        self.file, self.left = file, limit
        self.what = f"{archive} unpacks to more than {limit:,} bytes; expected no more"
        self.zip = zlib.decompressobj(wbits=31)  # with gzip's header, and the checksum at its end
        start = file.read(16)
        if start[:2] != b"\x1f\x8b":
            hint = " (a web page?)" if start.lstrip()[:1] == b"<" else ""
            raise DataError(f"{archive} begins with {start!r}{hint} and is no gzip archive; expected a .tar.gz")
        if os.fstat(file.fileno()).st_size > limit:
            raise DataError(self.what)
        file.seek(0)

    def read(self, size):
        """`size` bytes, fewer where the content ends."""
        parts = []
        while size > 0 and not self.zip.eof:
            packed = self.zip.unconsumed_tail or self.file.read(CHUNK)
            if not packed:
                raise EOFError("its end is missing")
            parts.append(self.zip.decompress(packed, size))
            size -= len(parts[-1])
            self.left -= len(parts[-1])
            if self.left < 0:
                raise DataError(self.what)
        return b"".join(parts)

    def skip(self, size):
        if not 0 <= size <= self.left:
            raise DataError(self.what)
        while size and (data := self.read(min(size, CHUNK))):
            size -= len(data)

    def finish(self):
        """Read to the end, where the checksum over everything stands."""
        while self.read(CHUNK):
            pass
        if self.zip.unused_data or self.file.read(1):
            raise EOFError("there are bytes behind its end")
