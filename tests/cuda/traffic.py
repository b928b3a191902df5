"""How many launches a training step of MobileNetV2 has and how many bytes they move: counted, on a machine without a GPU.

    python tests/cuda/traffic.py --width 1.0 --batch 512 --bfloat16

The step runs on the stand-in for CuPy, at its full size: with kernels that compute nothing, and arrays that nobody writes,
for which the system then needs no memory. Each array that a kernel is given counts once, as many bytes as it has: that is
what must cross to memory or back. What neighbours read again is not in it, on the assumption that it comes from the cache.
"""

import argparse
import ctypes
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import standin  # noqa: E402

OF_ALIKE = {"covariance_moments": ("z",), "alike_gradient": ("z", "g")}  # what a kernel reads of such channels alone


class Counts(NamedTuple):
    """Launches and bytes by kernel: ours by their names, those of the library's products and of CuPy's arithmetic."""

    launches: Counter
    moved: Counter

    def add(self, name, *arrays):
        self.launches[name] += 1
        self.moved[name] += sum(value.nbytes for value in arrays if isinstance(value, np.ndarray))

    def add_table(self, name, dtype, table):
        """Of a kernel that takes a table: the arrays in its rows, each as long as the row says."""
        from scratchnet.kernels.cuda import launch

        columns = [column for column in launch.declared()[name].arguments if column.pointer]
        self.launches[name] += 1
        self.moved[name] += sum(int(table["size"].sum()) * np.dtype(c.of(dtype)).itemsize for c in columns)


def count(monkeypatch, width, batch, bfloat16, size=32):
    """The `Counts` of one step, the second: the first makes what stays.

    Args:
        monkeypatch: pytest's, which puts everything back.
        width: of the network.
        batch: pictures.
        bfloat16: whether activations are stored in it; else in float32.
        size: of a picture's side.
    """
    monkeypatch.setitem(sys.modules, "cupy", standin)
    from models import MobileNetV2
    from scratchnet import CrossEntropyLoss
    from scratchnet.array import as_images
    from scratchnet.device import bfloat16_dtype
    from scratchnet.kernels.cuda import launch
    from scratchnet.training.optim import SGD
    from scratchnet.training.trainer import train_step

    counts = Counts(Counter(), Counter())
    forget_kernels()  # those that compute
    _replace(monkeypatch, counts)
    for name, most in (("THREADS", 256), ("BLOCKS", 2048), ("REDUCING_BLOCKS", 1024)):  # tests have smaller grids
        monkeypatch.setattr(launch, name, most)
    rng = np.random.default_rng(0)
    model = MobileNetV2(10, width, "cifar", dropout=0.0, rng=rng).to("cuda")
    optimizer = SGD(model.named_parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    dtype = bfloat16_dtype() if bfloat16 else np.float32
    x = as_images(standin.ndarray(np.empty((3, size, size, batch), dtype)))
    labels = standin.ndarray(np.zeros(batch, np.int64))
    try:
        for _ in range(2):
            counts.launches.clear(), counts.moved.clear()
            standin.counts.clear()
            with warnings.catch_warnings(), np.errstate(all="ignore"):  # numbers that nobody computed
                warnings.simplefilter("ignore")
                train_step(model, CrossEntropyLoss(0.1), optimizer, x, labels)
    finally:
        forget_kernels()
    counts.launches["CuPy's own"] = standin.counts["launch"] - sum(counts.launches.values())
    return counts


def forget_kernels():
    """Forget the kernels that are kept for the next launch: they compute nothing, or ought not to."""
    from scratchnet.kernels.cuda import launch

    for cached in (launch._module, launch._function, launch._prepared):
        cached.cache_clear()


def _replace(monkeypatch, counts):
    """Let the stand-in's kernels, and cuBLAS's products beside it, count only."""
    from scratchnet.kernels.cuda import launch, products

    class Module:
        def __init__(self, *_):
            pass

        def get_function(self, name):
            kernel, kind = name.rstrip(">").replace("<", ",").split(",")[:2]
            dtype = {cpp: dtype for dtype, cpp in launch.CPP.items()}[kind]
            named = [argument.name for argument in launch.declared()[kernel].arguments]

            def call(grid, block, values):
                if launch.declared()[kernel].rows:
                    counts.add_table(kernel, dtype, *values)
                else:
                    read = dict(zip(named, values, strict=True))
                    counts.add(kernel, *(value for key, value in read.items() if key not in OF_ALIKE.get(kernel, ())))

            return call

    class Binding(standin.Binding):
        def gemm_ex(self, _, turn_a, turn_b, m, n, k, *rest):
            standin.counts["launch"] += 1
            counts.launches["product"] += 1
            sizes = {0: 4, 1: 8, 14: 2}  # bytes, by cudaDataType_t
            for count, kind in ((m * k, rest[2]), (k * n, rest[5]), (m * n, rest[9])):
                counts.moved["product"] += count * sizes[kind]
            real = ctypes.c_double if rest[11] == products.FLOAT64 else ctypes.c_float
            counts.moved["product"] += m * n * sizes[rest[9]] * (real.from_address(rest[7]).value != 0)  # it adds

    binding = Binding()
    monkeypatch.setattr(standin, "HostModule", Module)
    monkeypatch.setattr(products, "_binding", lambda: binding)


def as_table(before, after):
    """Two `Counts` as a table, the largest first; the last line is all."""
    order = sorted({*before.launches, *after.launches}, key=lambda name: -max(before.moved[name], after.moved[name]))
    rows = [(name, *(c[name] for c in (*before, *after))) for name in order]
    rows.append(("all", *(sum(c.values()) for c in (*before, *after))))
    lines = ["| kernel | launches | MB | launches, now | MB, now |", f"|{' --- |' * 5}"]
    for name, launches, moved, launches_now, moved_now in rows:
        lines.append(f"| {name} | {launches} | {moved / 1e6:,.0f} | {launches_now} | {moved_now / 1e6:,.0f} |")
    return "\n".join(lines)


def main():
    import json

    import pytest

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--save", help="write the counts to a file, to compare another state of the library with")
    parser.add_argument("--before", help="such a file")
    given = parser.parse_args()
    with pytest.MonkeyPatch.context() as patch:
        counts = count(patch, given.width, given.batch, given.bfloat16)
    if given.save:
        Path(given.save).write_text(json.dumps(counts))
    before = Counts(*map(Counter, json.loads(Path(given.before).read_text()))) if given.before else counts
    print(as_table(before, counts))


if __name__ == "__main__":
    main()
