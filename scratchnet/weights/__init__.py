"""A network's numbers in a file: its own format, safetensors, and what PyTorch wrote.

`save` and `load` are `sn.save` and `sn.load`. What a file is, `load` sees from its first bytes, not from its name. Nothing
in a file is ever executed or imported, and a damaged file is an error where its format can tell: the `.npz` of
training/checkpoint.py by its SHA-256, PyTorch's zip by the CRC-32 of each part; safetensors and PyTorch's older format
keep no sums.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratchnet.array import to_device
from scratchnet.module import Module
from scratchnet.training import archive
from scratchnet.training.archive import CheckpointError
from scratchnet.training.atomic import atomic_file
from scratchnet.weights import safetensors_file, torch_file

OTHERS = {  # how files begin that are something else
    b"": "it is empty",
    b"\x89PNG": "it is a PNG picture",
    b"\xff\xd8\xff": "it is a JPEG picture",
    b"\x89HDF": "it is an HDF5 file, as Keras writes them, which is not read",
    b"\x1f\x8b": "it is compressed by gzip: unpack it first",
    b"\x93NUMPY": "it is one array, which numpy.load reads",
    b"\x80": f"it is a pickle, which is read only in the files of torch.save: {torch_file.SAVE}",
}


class Saved(NamedTuple):
    """What a file holds: dotted name -> array, and the header, {} where the format or the writer has none."""

    state: dict[str, np.ndarray]
    header: dict[str, Any]


def save(path: str | os.PathLike[str], model: Module | Mapping[str, Any]) -> None:
    """Write a network's parameters and buffers, durably and all or nothing.

    A class that has a method `config()`, which returns the arguments that make such a network, as JSON can hold them, gets
    these into the file too, so that `from_checkpoint` can build it.

    Args:
        path: the file; `.npz` makes a checkpoint (training/checkpoint.py), `.safetensors` that format, which other
            libraries read.
        model: a Module, or a state (dotted name -> array), such as `load` returns.

    Raises:
        ValueError: the name ends in something else. CheckpointError is one: an array cannot be stored, or the package
            safetensors is missing.
        TypeError: `model` is neither.
        OSError: the file could not be written; what was there is still there, whole.
    """
    header: dict[str, Any] = {}
    if isinstance(model, Module):
        if callable(config := getattr(type(model), "config", None)):
            header = {"network": {"name": type(model).__name__, "arguments": config(model)}}
        model = model.state_dict()
    if not isinstance(model, Mapping) or not all(isinstance(key, str) for key in model):
        raise TypeError(f"save: expected a Module or a state (dotted name -> array), got {type(model).__name__}")
    state = {key: np.asarray(to_device(value, "cpu")) for key, value in model.items()}
    suffix = Path(path).suffix
    if suffix == ".npz":
        data = archive.encode({f"model/{key}": value for key, value in state.items()}, header)
    elif suffix == ".safetensors":
        data = safetensors_file.encode(state, header)
    else:
        raise ValueError(f"save: expected a name that ends in .npz or .safetensors, got {os.fspath(path)!r}")
    with atomic_file(path) as file:
        file.write(data)


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The state in a file, dotted name -> array: `model.load_state_dict(sn.load(path))`.

    Args:
        path: what `save` wrote; a checkpoint of train_cifar.py, of which these are the weights that it is tested with
            (the averaged ones, where it has them); a safetensors file; what `torch.save` wrote of a state_dict (`.pth`,
            `.pt`), or of a dict that has one under "state_dict" or "model". bfloat16 becomes float32, which has all its
            numbers; other dtypes stay. Tensors that shared memory in PyTorch share it here.

    Raises:
        CheckpointError: it cannot be read, is damaged or is something else; one sentence that names the file.
    """
    return read(path).state


def read(path: str | os.PathLike[str]) -> Saved:
    """`load`, and the header beside it."""
    return archive.read(path, _decode)


def weights_of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of a checkpoint that are to be tested: the averaged ones, where it has them."""
    average = archive.part(arrays, "average")
    average.pop("updates", None)
    return average or archive.part(arrays, "model")


def _decode(data: bytes) -> Saved:
    """What is in a file's bytes; raises nearly anything."""
    if data.startswith(b"PK\3\4"):
        first = data[30 : 30 + int.from_bytes(data[26:28], "little")]  # the name of the first member
        if first == f"{archive.HEADER}.npy".encode():
            arrays, header = archive.decode(data)
            if not (state := weights_of(arrays)):
                raise CheckpointError(f"it holds no network, but {', '.join(map(repr, list(arrays)[:3])) or 'nothing'}")
            return Saved(state, header)
        if first.endswith(b".npy"):
            raise CheckpointError("it is NumPy's own .npz: load_state_dict(numpy.load(path)) takes it")
        return Saved(torch_file.decode(data), {})
    if data.startswith(torch_file.MAGIC):
        return Saved(torch_file.decode(data), {})
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data):
        return Saved(*safetensors_file.decode(data))
    for start, words in OTHERS.items():
        if data.startswith(start) if start else not data:
            raise CheckpointError(words)
    raise CheckpointError("its first bytes are those of no format that is read (.npz, .safetensors, .pth)")
