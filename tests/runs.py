"""Small runs of train_cifar.py, for the tests: a few drawn pictures and a very narrow network; and small checkpoints."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

import scratchnet as sn
import train_cifar
from scratchnet.data import cifar10, shapes
from scratchnet.program import data as program_data
from scratchnet.program import report
from scratchnet.training import atomic, checkpoint, record

ROOT = Path(train_cifar.__file__).parent
SMALL = ["--sample", "--width", "0.1", "--batch-size", "25", "--epochs", "2", "--lr", "0.02"]
SMALL += ["--ranks", "1", "--threads", "1"]

# A child process that draws 120 + 40 pictures, and dies or gets a signal after the given number of steps.
CHILD = """
import os, signal, sys
import train_cifar
from scratchnet.data import shapes
from scratchnet.program import data as program_data
from scratchnet.training import trainer
small = lambda seed: shapes.draw_shapes(120, 40, seed)
program_data.draw_shapes = small
stop_after, number, step, done = int(sys.argv[1]), int(sys.argv[2]), trainer.train_step, 0
def counted(*args):
    global done
    result = step(*args)
    done += 1
    if done == stop_after:
        os.kill(os.getpid(), number)
    return result
trainer.train_step = counted
sys.exit(train_cifar.main(sys.argv[3:]))
"""


def few_pictures(seed):
    """In place of `draw_shapes`."""
    return shapes.draw_shapes(120, 40, seed)


def run(*flags):
    """Run it in this process; returns the exit code."""
    return train_cifar.main([*SMALL, *map(str, flags)])


def child(stop_after, number, *flags):
    """Run it in a process of its own, which gets a signal after so many steps; 0: after none."""
    command = [sys.executable, "-c", CHILD, str(stop_after), str(int(number)), *SMALL, *map(str, flags)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120)


def rows_of(folder):
    """The rows of metrics.csv, as numbers."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{field: float(value) for field, value in row.items()} for row in csv.DictReader(file)]


def content(folder):
    """What must be equal after a resume: every array, every generator, and the log rows but for their times."""
    arrays, header = checkpoint.load(folder / "last.npz")
    times = ("seconds", "images_per_second")
    rows = [{k: v for k, v in row.items() if k not in times} for row in rows_of(folder)]
    kept = {key: header[key] for key in ("epoch", "batch", "best", "loss", "accuracy", "generator", "config")}
    return {key: value.tobytes() for key, value in arrays.items()}, kept, rows


def numbered(number):
    """A checkpoint that says which one it is, too large for one buffer of Python's files."""
    return {"w": np.full(5000, number, np.float64)}, {"number": number}


def number_of(found):
    arrays, header, _ = found
    assert (arrays["w"] == header["number"]).all()
    return header["number"]


# Runs that take no time: three steps an epoch of a network of a thousand weights, on noise ------------------------------

TINY = [
    "--sample", "--image-size", "8", "--width", "0.1", "--batch-size", "36", "--epochs", "3", "--lr", "0.2", "--seed", "2",
    "--ranks", "1", "--threads", "1", "--checkpoint-every", "2", "--ema", "0.5", "--optimizer", "adam", "--augment", "none",
]  # fmt: skip


def make_tiny(monkeypatch):
    """Let train_cifar.py train a tiny network on a few pictures of noise, and draw nothing that takes long."""

    def model(args, rng, *_):
        layers = sn.Conv2d(3, 8, 3, rng=rng), sn.BatchNorm2d(8), sn.ReLU6(), sn.GlobalAvgPool2d(), sn.Flatten()
        return sn.Sequential(*layers, sn.Dropout(0.2, rng=rng), sn.Linear(8, 10, rng=rng))

    def pictures(seed):
        rng = np.random.default_rng(seed)
        labels = [rng.integers(0, 10, n) for n in (120, 9)]
        brighter = [20 * k[:, None, None, None] + rng.integers(0, 60, (len(k), 3, 8, 8)) for k in labels]
        return [
            cifar10.Dataset(x.astype(np.uint8), k, shapes.CLASSES, "noise")
            for x, k in zip(brighter, labels, strict=True)
        ]

    def curves(rows, path, title, check):
        with atomic.atomic_file(path, check=check) as file:
            file.write(f"{len(rows)} epochs of {title}".encode())

    monkeypatch.setattr(train_cifar, "make_model", model)
    monkeypatch.setattr(program_data, "draw_shapes", pictures)
    monkeypatch.setattr(record, "draw_curves", curves)
    monkeypatch.setattr(report, "draw_confusion", lambda *_: False)


def tiny(out, *flags):
    """Run it in this process on `out`; returns the exit code."""
    return train_cifar.main([*TINY, "--out", str(out), *map(str, flags)])


def everything(out):
    """All that a finished run leaves, but for times and for what else it said."""
    arrays, header = checkpoint.load(out / "best.npz")
    log = re.findall(r"^epoch +\d.*(?=  lr)", (out / "log.txt").read_text(errors="replace"), re.M)
    texts = [(out / name).read_text() for name in ("config.json", "result.json", "curves.png")]
    names = sorted(path.name for path in out.iterdir() if path.name != checkpoint.PREVIOUS)  # is of no use any more
    return content(out), {key: array.tobytes() for key, array in arrays.items()}, header, log, texts, names
