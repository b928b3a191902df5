"""The bytes of a checkpoint, as checkpoint.py describes them: from arrays and a header to a `.npz` file and back.

Reading believes nothing before it has checked it, and asks for no more memory than the file is long: first the zip
directory, then each `.npy` header, by a pattern and not by `eval`, at last the hash over everything. The hash alone
would do against wrong values; the rest is there so that nothing bad happens on the way to it.
"""

import hashlib
import io
import json
import math
import re
import zipfile
from importlib import metadata
from typing import Any

import numpy as np

FORMAT, VERSION = "scratchnet checkpoint", 1
HEADER = "__header__"
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([<>|][biufc]\d+)', 'fortran_order': False, "
    rb"'shape': \((|\d+,|\d+(?:, \d+)+)\), \} *\n",
    re.DOTALL,
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message is one sentence that names it and the reason."""


class NewerFormatError(CheckpointError):
    """An undamaged checkpoint of a format version that came after this library."""


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
    own = {"format": FORMAT, "version": VERSION, "scratchnet": _library_version(), "numpy": np.__version__}
    try:
        plain = json.loads(_canonical(header | {"checkpoint": own}))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the header cannot be stored as JSON: {error}") from error
    plain["checkpoint"]["sha256"] = _digest(arrays, plain)
    text = np.frombuffer(_canonical(plain), np.uint8)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, array in ({HEADER: text} | arrays).items():
            member = zipfile.ZipInfo(f"{key}.npy")  # dated 1980-01-01, whatever the clock says
            member.file_size = array.nbytes  # tells zipfile whether it needs 64-bit sizes
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `encode` was given; raises nearly anything for bytes that did not come from it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        _check_layout(members, data)
        text = _parse_npy(archive.read(f"{HEADER}.npy")).tobytes()
        header = json.loads(text.decode("ascii"))
        own = header["checkpoint"]
        if own["format"] != FORMAT:
            raise ValueError("its header does not say that it is one")
        if own["version"] > VERSION:
            raise NewerFormatError(
                f"has format version {own['version']}, written by scratchnet {own.get('scratchnet')}; this one "
                f"reads versions up to {VERSION}: use a newer scratchnet"
            )
        arrays = {member.filename.removesuffix(".npy"): _parse_npy(archive.read(member)) for member in members}
    del arrays[HEADER]
    if own["sha256"] != _digest(arrays, header):
        raise ValueError("its content does not have the SHA-256 that its header states")
    return arrays, header


def _check_layout(members: list[zipfile.ZipInfo], data: bytes) -> None:
    """Refuse what `encode` never writes, though zipfile would read it."""
    if len({member.filename for member in members}) < len(members):
        raise ValueError("a member is there twice")
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


def _library_version() -> str:
    try:
        return metadata.version("scratchnet-engine")
    except metadata.PackageNotFoundError:
        return "unknown"


def kind(array: Any) -> str:
    """Dtype and shape in words, for messages; of something else, its type."""
    return f"{array.dtype} {array.shape}" if hasattr(array, "dtype") else f"a {type(array).__name__}"
