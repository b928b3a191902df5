"""What freezing saves: a training step of MobileNetV2 with all of it trained, and with its classifier alone.

    python benchmarks/finetune.py [--width 0.5] [--batch 32] [--rounds 15]

Three networks take turns in one process; medians, as parts of the whole network's.
"""

import argparse
import statistics
import time

import numpy as np
from machine import head

import scratchnet as sn
from models import MobileNetV2
from scratchnet import kernels


def networks(width):
    """Name -> a network: as it is, its features frozen in training mode, and in eval mode too."""
    made = {name: MobileNetV2(10, width, rng=np.random.default_rng(0)) for name in ("all", "frozen", "frozen, eval")}
    made["frozen"].features.requires_grad_(False)
    made["frozen, eval"].features.requires_grad_(False).eval()
    return made


def measure(width, batch, rounds):
    """Name -> (seconds forward, seconds backward), medians."""
    rng, criterion = np.random.default_rng(1), sn.CrossEntropyLoss()
    x = sn.as_images(rng.standard_normal((3, 32, 32, batch), dtype=np.float32))
    labels, times = rng.integers(0, 10, batch), {}
    made = networks(width)
    for _ in range(rounds + 2):
        for name, model in made.items():
            start = time.perf_counter()
            logits = model(x)
            between = time.perf_counter()
            criterion(logits, labels)
            dlogits = criterion.backward()
            again = time.perf_counter()
            model.backward(dlogits)
            times.setdefault(name, []).append((between - start, time.perf_counter() - again))
    return {name: [statistics.median(column) for column in zip(*rows[2:], strict=True)] for name, rows in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, kind, value in (("width", float, 0.5), ("batch", int, 32), ("rounds", int, 15)):
        parser.add_argument(f"--{name}", type=kind, default=value)
    found = measure(**vars(parser.parse_args()))
    forward, backward = found["all"]
    print(head((kernels.enabled(),)))
    for name, (ahead, back) in found.items():
        both = (ahead + back) / (forward + backward)
        print(f"{name:<13} forward {ahead / forward:.3f}   backward {back / backward:.4f}   both {both:.3f}")


if __name__ == "__main__":
    main()
