"""The bytes of a checkpoint, as checkpoint.py describes them: from arrays and a header to a `.npz` file and back.

Reading believes nothing before it has checked it, and asks for no more memory than the file is long: first the zip
directory, then each `.npy` header, by a pattern and not by `eval`, at last the hash over everything. The hash alone
would do against wrong values; the rest is there so that nothing bad happens on the way to it.
"""

import functools
import hashlib
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Callable
from importlib import metadata
from typing import Any, TypeVar

import numpy as np

from scratchnet.training.atomic import read_regular

Content = TypeVar("Content")
FORMAT, VERSION = "scratchnet checkpoint", 1
HEADER = "__header__"
MOST_HEADER = 2**24  # bytes: parsed JSON takes many times its length
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([<>|][biufc]\d+)', 'fortran_order': False, "
    rb"'shape': \((|\d+,|\d+(?:, \d+)+)\), \} *\n",
    re.DOTALL,
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message is one sentence that names it and the reason."""


class NewerFormatError(CheckpointError):
    """An undamaged checkpoint of a format version that came after this library."""


def read(path: str | os.PathLike[str], parse: Callable[[bytes], Content]) -> Content:
    """What `parse` makes of a file's bytes.

    Raises:
        CheckpointError: for whatever it, or reading them, raises; one sentence that names the file.
    """
    try:
        return parse(read_regular(path))
    except NewerFormatError as error:
        raise NewerFormatError(f"{shown(path)} {error}") from None
    except CheckpointError as error:  # what it is, is known
        raise CheckpointError(f"{shown(path)}: {shown(error)}") from error
    except OSError as error:
        raise CheckpointError(f"{shown(path)} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{shown(path)} does not fit into the memory of this machine") from error
    except Exception as error:  # a damaged file can make zipfile and json raise nearly anything
        reason = shown(error)[:200] or type(error).__name__
        raise CheckpointError(f"{shown(path)} is not a whole checkpoint: {reason}") from error


def shown(what: object) -> str:
    """Something's text on one line, whatever is in it: for messages."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(what))


def part(arrays: dict[str, Any], name: str) -> dict[str, Any]:
    """The arrays whose keys open with "name/", by the rest of their keys."""
    return {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}


def encode(arrays: dict[str, np.ndarray], header: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint file; see `save`."""
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
            raise CheckpointError(
                f"array {key!r} cannot be stored: expected numbers in a NumPy array, got {kind(array)}"
            )
        if not key.isprintable() or "\\" in key or key in ("", HEADER):
            raise CheckpointError(f"{key!r} cannot be the key of an array: expected printable text without backslashes")
    arrays = {key: np.asarray(array, order="C") for key, array in arrays.items()}
    text = np.frombuffer(_canonical(_complete(arrays, header)), np.uint8)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, array in ({HEADER: text} | arrays).items():
            member = zipfile.ZipInfo(f"{key}.npy")  # dated 1980-01-01, whatever the clock says
            member.file_size = array.nbytes  # tells zipfile whether it needs 64-bit sizes
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def content_hash(arrays: dict[str, np.ndarray], header: dict[str, Any]) -> str:
    """The SHA-256 that `encode` will state for this content."""
    return _complete(arrays, header)["checkpoint"]["sha256"]


def decode(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `encode` was given; raises nearly anything for bytes that did not come from it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if not members or members[0].filename != f"{HEADER}.npy":
            raise ValueError(f"its first member is not {HEADER}.npy, as in every file of scratchnet's")
        _check_layout(members, data)
        text = _parse_npy(archive.read(members[0])).tobytes()
        header = _parse_header(text)
        arrays = {member.filename.removesuffix(".npy"): _parse_npy(archive.read(member)) for member in members[1:]}
    if header["checkpoint"]["sha256"] != _digest(arrays, header):
        raise ValueError("its content does not have the SHA-256 that its header states")
    return arrays, header


def expect(arrays: dict[str, Any], like: dict[str, Any], what: str) -> None:
    """Check that `arrays` has exactly the keys, shapes and dtypes of `like`; `what` opens the message.

    Raises:
        CheckpointError: it does not; the first three keys of each kind of difference are named.
    """
    missing = [repr(key) for key in like if key not in arrays]
    unexpected = [repr(key) for key in arrays if key not in like]
    kinds = {key: (kind(arrays[key]), kind(like[key])) for key in like if key in arrays}
    different = [f"{key!r} is {got}, expected {wanted}" for key, (got, wanted) in kinds.items() if got != wanted]
    parts = [
        f"{len(found)} {name} ({', '.join(found[:3])}{', …' if len(found) > 3 else ''})"
        for name, found in (("missing", missing), ("unexpected", unexpected), ("different", different))
        if found
    ]
    if parts:
        raise CheckpointError(f"{what}: the arrays do not fit: {'; '.join(parts)}")


def not_finite(arrays: dict[str, np.ndarray]) -> str | None:
    """The key of the first array in which a number is not finite; None where all are."""
    floats = ((key, array) for key, array in arrays.items() if array.dtype.kind in "fc")
    return next((key for key, array in floats if not np.isfinite(array).all()), None)


def _complete(arrays: dict[str, np.ndarray], header: dict[str, Any]) -> dict[str, Any]:
    """The header as it is written: with its field "checkpoint", and the hash in it."""
    own = {"format": FORMAT, "version": VERSION, "scratchnet": _library_version(), "numpy": np.__version__}
    try:
        plain = json.loads(_canonical(header | {"checkpoint": own}))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the header cannot be stored as JSON: {error}") from error
    plain["checkpoint"]["sha256"] = _digest(arrays, plain)
    return plain


def _parse_header(text: bytes) -> dict[str, Any]:
    """The JSON of a header; its field "checkpoint" is of this version and has what that is to have."""
    if len(text) > MOST_HEADER:
        raise ValueError(f"its header has {len(text):,} bytes, expected at most {MOST_HEADER:,}")
    header = json.loads(text.decode("ascii"))
    own = header.get("checkpoint") if isinstance(header, dict) else None
    if not isinstance(own, dict) or own.get("format") != FORMAT or type(own.get("version")) is not int:
        raise ValueError("its header does not say that it is one")
    writers = [own.get("scratchnet"), own.get("numpy")]
    if not all(isinstance(name, str) and name.isprintable() and len(name) < 100 for name in writers):
        raise ValueError("its header does not say which versions of scratchnet and NumPy wrote it")
    if own["version"] > VERSION:
        raise NewerFormatError(
            f"has format version {str(own['version'])[:12]}, written by scratchnet {writers[0]}; this one "
            f"reads versions up to {VERSION}: use a newer scratchnet"
        )
    if own["version"] < 1 or text != _canonical(header):
        raise ValueError("its header is not as scratchnet writes it")
    return header


def _check_layout(members: list[zipfile.ZipInfo], data: bytes) -> None:
    """Refuse what `encode` never writes, though zipfile would read it."""
    if len({member.filename for member in members}) < len(members):
        raise ValueError("a member is there twice")
    for member in members:  # beside a.npy, NumPy takes a member a for the array
        if not member.filename.endswith(".npy") or member.filename != member.orig_filename:
            raise ValueError(f"the name of its member {member.filename[:60]!r} does not end in .npy")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("a member is compressed")  # and could be a bomb
    if members[0].header_offset or data[-22:-18] != b"PK\5\6" or data[-2:] != b"\0\0":
        raise ValueError("there are bytes before or after it")
    if sum(member.file_size for member in members) > len(data):
        raise ValueError("its members are said to be larger than the file")


def _parse_npy(data: bytes) -> np.ndarray:
    """The array in the bytes of a `.npy` file, writable; refuses before it asks for memory."""
    match = _NPY.match(data)
    if match is None or int.from_bytes(match[1], "little") != match.end() - 10:
        raise ValueError("a member is not a .npy file as scratchnet writes it")
    dtype = np.dtype(match[2].decode())
    shape = tuple(int(size) for size in match[3].decode().split(",") if size)
    if len(data) - match.end() != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"a member's size does not go with its shape {shape} and dtype {dtype}")
    return np.frombuffer(data, dtype, offset=match.end()).reshape(shape).copy()


def _digest(arrays: dict[str, np.ndarray], header: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(json.dumps([key, arrays[key].dtype.str, arrays[key].shape]).encode() + b"\n")
        digest.update(arrays[key].tobytes())
    own = {field: value for field, value in header["checkpoint"].items() if field != "sha256"}
    digest.update(_canonical(header | {"checkpoint": own}))
    return digest.hexdigest()


def _canonical(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


@functools.cache
def _library_version() -> str:
    try:
        return metadata.version("scratchnet-engine")
    except metadata.PackageNotFoundError:
        return "unknown"


def kind(array: Any) -> str:
    """Dtype and shape in words, for messages; of something else, its type."""
    return f"{array.dtype} {array.shape}" if hasattr(array, "dtype") else f"a {type(array).__name__}"
