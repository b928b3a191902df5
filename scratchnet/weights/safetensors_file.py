"""Files in the format safetensors, by the package of that name (extra `safetensors`), which checks their layout.

A file is the length of a header as 8 bytes, the header in JSON (name -> dtype, shape, place), then the numbers. Under
"__metadata__" the header has text of the writer's own: ours keeps there what `sn.save` keeps in the header of an `.npz`.
"""

import json
from typing import Any

import numpy as np

from scratchnet.training.archive import CheckpointError

OURS = "scratchnet"  # the key of our text in "__metadata__"
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?", "C64": "<c8", "BF16": "<u2",
}  # fmt: skip


def _package():
    try:
        import safetensors.numpy
    except ImportError:
        raise CheckpointError("safetensors files need the package of that name: pip install safetensors") from None
    return safetensors


def encode(state: dict[str, np.ndarray], header: dict[str, Any]) -> bytes:
    """The bytes of a file with these arrays; raises CheckpointError for what the format does not have."""
    package = _package()
    for key, array in state.items():
        if np.dtype(array.dtype).newbyteorder("<") not in [np.dtype(dtype) for dtype in DTYPES.values()]:
            raise CheckpointError(f"array {key!r} cannot be stored: safetensors has no {array.dtype}")
    native = {key: np.asarray(array, array.dtype.newbyteorder("="), order="C") for key, array in state.items()}
    return package.numpy.save(native, {OURS: json.dumps(header, sort_keys=True)})


def decode(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays, bfloat16 as float32, and our header, {} where another program wrote it; raises nearly anything."""
    package = _package()
    state = {}
    for key, entry in package.deserialize(data):
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"its array {key!r} is of dtype {entry['dtype']}, which NumPy does not have")
        array = np.frombuffer(entry["data"], DTYPES[entry["dtype"]])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        state[key] = array.reshape(entry["shape"]).astype(array.dtype.newbyteorder("="))
    text = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    header = json.loads(text[OURS]) if OURS in text else {}
    if not isinstance(header, dict):
        raise ValueError("its header is not as scratchnet writes it")
    return state, header
