"""Checkpoints: files that are whole or absent, and that say so when they are damaged.

What a file is
    One `.npz` (a zip archive of `.npy` files, nothing compressed, nothing pickled), so that `numpy.load` opens it too.
    Its first member, `__header__.npy`, is a uint8 vector: the bytes of a JSON object (ASCII only, keys sorted, no
    spaces). Every other member is one array, named by its key plus `.npy`: format version 1.0, C order, dtype
    boolean, integer, floating-point or complex, of either byte order.

    The header is what the caller gave (a run's network, epoch, configuration, generator states, …) plus one field,
        "checkpoint": {"format": "scratchnet checkpoint", "version": 1, "scratchnet": …, "numpy": …, "sha256": …}
    the two in the middle being the versions of the libraries that wrote it. The SHA-256, in hex, is that of:
        for each key in sorted order: the JSON list [key, dtype, shape], a line feed, the array's bytes in C order;
        then the JSON of the header without "sha256".
    No times are kept: the same content gives the same bytes, so two equal runs leave equal files.

What a reader may rely on
    `load` returns what `save` was given, or raises CheckpointError. A change of the description above raises the
    version; the archive and its first member stay as they are, so that every version can say which one it is.

How it is written
    By `atomic.py`: killed at any instant, the old file or the new one is there, whole. `save_rotating` keeps the last
    two, last.npz and last.previous.npz, and removes what a killed run left under a temporary name.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scratchnet.training.archive import CheckpointError, NewerFormatError, decode, encode, read
from scratchnet.training.archive import part as part
from scratchnet.training.atomic import Check, atomic_file, remove_leftovers

LAST, PREVIOUS = "last.npz", "last.previous.npz"


def save(
    path: str | os.PathLike[str], arrays: dict[str, np.ndarray], header: dict[str, Any], check: Check = None
) -> None:
    """Write a checkpoint, durably and all or nothing.

    Args:
        path: the file; its folder must exist.
        arrays: key -> NumPy array of numbers or booleans, of any shape.
        header: anything that JSON can hold; a field "checkpoint" is replaced.
        check: as `atomic_file` takes it.

    Raises:
        CheckpointError: an array or the header cannot be stored.
        OSError: the file could not be written, and its name is in the message; the old file is still there, whole.
    """
    data = encode(arrays, header)
    with atomic_file(path, check=check) as file:
        file.write(data)


def load(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a checkpoint and verify it: the arrays, and the header with its field "checkpoint".

    Raises:
        CheckpointError: for whatever keeps the content from being exactly what was saved.
    """
    return read(path, decode)


def save_rotating(
    folder: str | Path, arrays: dict[str, np.ndarray], header: dict[str, Any], check: Check = None
) -> None:
    """`save` as last.npz in `folder`, keeping the one before it as last.previous.npz."""
    data = encode(arrays, header)
    remove_leftovers(folder)
    with atomic_file(Path(folder) / LAST, keep=Path(folder) / PREVIOUS, check=check) as file:
        file.write(data)


def load_latest(folder: str | Path, warn: Callable[[str], None]) -> tuple[dict, dict, Path] | None:
    """`load` last.npz, or last.previous.npz with one line to `warn` that says why; None where neither exists.

    Returns:
        The arrays, the header, and the path that they came from.

    Raises:
        CheckpointError: there are files and none can be read, or one is of a newer format.
    """
    failures: list[CheckpointError] = []
    for path in (Path(folder) / LAST, Path(folder) / PREVIOUS):
        try:
            arrays, header = load(path)
        except NewerFormatError:
            raise  # going on from an older checkpoint would write over this one
        except CheckpointError as error:
            failures.append(error)
        else:
            if failures:
                warn(f"{failures[0]}; going on from {path}, the checkpoint before it")
            return arrays, header, path
    if all(isinstance(error.__cause__, FileNotFoundError) for error in failures):
        return None
    raise CheckpointError("; ".join(map(str, failures)))


def generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """The state that decides all further draws of `rng` (not its `spawn`), as JSON can hold it."""
    return json.loads(json.dumps(rng.bit_generator.state, default=lambda value: value.tolist()))


def restore_generator(rng: np.random.Generator, state: dict[str, Any]) -> None:
    """Make `rng` go on as the generator that `generator_state` was called on.

    Raises:
        CheckpointError: `state` is of another kind of generator, or no state at all.
    """
    before = rng.bit_generator.state
    with contextlib.suppress(Exception):  # of many types: NumPy looks into the state as it comes
        rng.bit_generator.state = state
    if generator_state(rng) != state:  # refused above, or taken with a change (fractions cut off)
        rng.bit_generator.state = before
        wanted = type(rng.bit_generator).__name__
        raise CheckpointError(f"generator state: expected the state of a {wanted}, got {str(state)[:60]}")


def main(arguments: list[str]) -> int:
    """`python -m scratchnet.training.checkpoint FILE`: print what is inside; exit code 2 where it cannot be read."""
    if len(arguments) != 1:
        print("usage: python -m scratchnet.training.checkpoint FILE", file=sys.stderr)
        return 2
    try:
        arrays, header = load(arguments[0])
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 2
    own = header.pop("checkpoint")
    size = sum(array.nbytes for array in arrays.values())
    rows = {field: value if isinstance(value, str) else json.dumps(value) for field, value in header.items()}
    rows |= {"arrays": f"{len(arrays)}, {size:,} bytes", "sha256": f"{own['sha256']} (verified)"}
    writers = f"scratchnet {own['scratchnet']} with NumPy {own['numpy']}"
    print(f"{arguments[0]}: {own['format']}, version {own['version']}, written by {writers}")
    for field, value in rows.items():
        print(f"  {field:<{max(map(len, rows))}}  {value if len(value) <= 90 else value[:89] + '…'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
