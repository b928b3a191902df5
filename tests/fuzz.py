"""Fuzz the readers of files that somebody else made, guided by coverage (atheris: extra `dev`); not run by pytest.

    .venv/bin/python tests/fuzz.py READER FOLDER [libFuzzer's options]

READER is one of `READERS`; FOLDER keeps the inputs that reach new code, from a few small seeds on. It goes on until
-max_total_time, in seconds, or until an input raises something else than the reader's own error, gives what is no
picture or no checkpoint, or takes over 5 s or 1.5 GB: that input is kept as crash-*, timeout-* or oom-* in FOLDER.
Checksums are put right in what the fuzzer changed (but for `archive` and `checkpoint`, which are read as they are):
behind them lies most of the code, and whoever forges a file puts them right as well.
"""

import gzip
import io
import pickle
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from unittest import mock

import atheris
import numpy as np  # before the others, as it is not what is to be tried

with atheris.instrument_imports():
    import tarfile
    import zipfile

    import PIL.JpegImagePlugin
    import PIL.PngImagePlugin

    from scratchnet.data.cifar import CIFAR10_BINARY
    from scratchnet.data.cifar10 import load_cifar10
    from scratchnet.data.files import DataError
    from scratchnet.data.pickled_arrays import read_pickle
    from scratchnet.data.pictures import PictureError, read_picture
    from scratchnet.training.archive import CheckpointError, decode, encode
    from scratchnet.training.checkpoint import load
    from scratchnet.unpickle import UnpickleError
    from scratchnet.unpickle import load as unpickle
    from scratchnet.weights import load as load_weights

from torch_files import legacy, tensors, zipped
from torch_files import members as torch_members

CUT = b"<cut>"
WHERE = Path(tempfile.mkdtemp(prefix="fuzz")) / CIFAR10_BINARY.archive
RECORD_BYTES = 3073


def archive(data):
    """A `.tar.gz` of CIFAR-10's files, one record each."""
    WHERE.write_bytes(data)
    train, test = load_cifar10(WHERE, records=1)
    assert train.images.shape == (5, 3, 32, 32) and max(*train.labels, *test.labels) < 10


def tar(data):
    """The tar file within it."""
    blocks = [bytearray(data[at : at + 512]) for at in range(0, len(data), 512)]
    for block in blocks:
        if block[257:262] == b"ustar" and len(block) == 512:
            block[148:156] = b" " * 8  # counts as spaces in the sum itself
            block[148:156] = b"%06o\0 " % sum(block)
    archive(gzip.compress(b"".join(blocks), 0))


def picture(data):
    """A PNG or JPEG file."""
    at, data = 8, bytearray(data)
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 <= len(data):
            data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    WHERE.write_bytes(data)
    pixels = read_picture(WHERE)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == np.uint8


def checkpoint(data):
    """A checkpoint: what is read is what is written again."""
    WHERE.write_bytes(data)
    arrays, header = load(WHERE)
    again, _ = decode(encode(arrays, header))
    assert all(again[key].tobytes() == array.tobytes() for key, array in arrays.items()) and len(again) == len(arrays)


def members(data):
    """What is in a checkpoint's zip file: a name and a content in turn, the header's hash being right."""
    names_and_contents = data.split(CUT)
    pairs = zip(names_and_contents[::2], names_and_contents[1::2], strict=False)
    with zipfile.ZipFile(WHERE, "w") as new:
        for name, content in {name.decode("latin-1"): content for name, content in pairs}.items():
            new.writestr(zipfile.ZipInfo(name), content)
    with mock.patch("scratchnet.training.archive._digest", lambda arrays, header: header["checkpoint"]["sha256"]):
        arrays, header = load(WHERE)
    assert isinstance(header, dict) and all(isinstance(array, np.ndarray) for array in arrays.values())


def pickled(data):
    """A pickle, for the machine alone: it may make anything out of numbers, and a dict of its own."""
    unpickle(data, {"m.make": lambda: {}, "m.value": 1}, lambda key: None)


def torch_file(data):
    """What torch.save wrote."""
    WHERE.write_bytes(data)
    state = load_weights(WHERE)
    assert all(isinstance(array, np.ndarray) and array.size <= len(data) for array in state.values())


def torch_members_of(data):
    """What is in one, zip format: a name and a content in turn."""
    pieces = data.split(CUT)
    pairs = zip(pieces[::2], pieces[1::2], strict=False)
    torch_file(zipped({name.decode("latin-1"): content for name, content in pairs}.items()))


def pickled_arrays(data):
    """A pickle of plain values and arrays."""
    read_pickle(data, "it")


READERS = {  # what each may raise
    archive: DataError,
    tar: DataError,
    picture: PictureError,
    checkpoint: CheckpointError,
    members: CheckpointError,
    pickled: UnpickleError,
    torch_file: CheckpointError,
    torch_members_of: CheckpointError,
    pickled_arrays: DataError,
}


def seeds(reader):
    """A few small files that the reader takes."""
    if reader in (archive, tar):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as new:
            for name in CIFAR10_BINARY.files:
                member = tarfile.TarInfo(f"{CIFAR10_BINARY.folder}/{name}")
                member.size = RECORD_BYTES
                new.addfile(member, io.BytesIO(bytes(RECORD_BYTES)))
        yield gzip.compress(file.getvalue()) if reader is archive else file.getvalue()
    if reader is picture:
        for kind, mode in [("PNG", m) for m in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")] + [("JPEG", "RGB")]:
            file = io.BytesIO()
            exif = PIL.Image.Exif()
            exif[0x0112] = 6  # to be turned
            PIL.Image.new(mode, (5, 3)).save(file, kind, exif=exif)
            yield file.getvalue()
    if reader is checkpoint:
        yield encode({"model/a": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"epoch": 1, "config": {"width": 0.5}})
        yield encode({}, {})
    if reader is members:
        for seed in seeds(checkpoint):
            with zipfile.ZipFile(io.BytesIO(seed)) as whole:
                yield CUT.join(piece for name in whole.namelist() for piece in (name.encode(), whole.read(name)))
    state = tensors({"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array(7)})
    if reader is pickled:
        for protocol in (2, 4):
            yield pickle.dumps({"a": [1, 2.5, "text", (None, True), b"bytes"], "b": {7: 2**40}}, protocol)
        yield b"\x80\x02cm\nmake\n)Rcm\nvalue\nQ0."
    if reader is torch_file:
        yield zipped(torch_members(*state))
        yield legacy(*state)
    if reader is torch_members_of:
        yield CUT.join(piece for name, content in torch_members(*state) for piece in (name.encode(), content))
    if reader is pickled_arrays:
        value = {
            "data": np.arange(6, dtype=np.uint8).reshape(2, 3),
            b"labels": [1, -7, 2.5, None, True],
            "x": ("", b"y"),
        }
        for protocol in (2, 3, 4):
            yield pickle.dumps(value, protocol)


def main():
    name, folder, *options = sys.argv[1:]
    reader = {reader.__name__: reader for reader in READERS}[name]
    expected = READERS[reader]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(reader)):
        (Path(folder) / f"seed{number}").write_bytes(seed)

    def one(data):
        try:
            reader(data)
        except expected as error:
            assert "\n" not in str(error), "an error of several lines"

    limits = ["-timeout=5", "-rss_limit_mb=1536", f"-artifact_prefix={folder}/", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *limits, *options, folder], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
