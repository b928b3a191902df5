"""An epoch of CIFAR-10 as it is trained: batches with crop and flip, steps, loss and accuracy; scratchnet and PyTorch.

    python benchmarks/epoch.py --data DIR [--steps 60] [--rounds 3] [--json FILE]     (extra `bench`)

The network is the cifar variant at width 0.5, batch 128. Both engines take their batches from scratchnet's own loader (the
next batch is prepared in a thread), each in a child process, in turn. What is printed are seconds for 50,000 pictures; by
default from 60 steps a round, with `--steps 0` from the whole epoch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from engines import LR, MOMENTUM, ROOT
from machine import KERNELS, head, save

import scratchnet as sn
from models import MobileNetV2
from scratchnet.data.cifar10 import MEAN, STD, load_cifar10
from scratchnet.training.batches import Batches
from scratchnet.training.optim import SGD
from scratchnet.training.trainer import train_step

ENGINES = ("scratchnet", "torch-channels-last")
BATCH, PICTURES = 128, 50_000


def scratchnet_step():
    """A function of a batch."""
    sn.set_num_threads(2)
    model = MobileNetV2(10, 0.5, rng=np.random.default_rng(0))
    optimizer, criterion = SGD(model.parameters(), LR, MOMENTUM), sn.CrossEntropyLoss()

    def step(x, labels):
        loss, logits = train_step(model, criterion, optimizer, x, labels)
        return float(loss), (logits.argmax(axis=1) == labels).mean()

    return step


def torch_step():
    """The same in PyTorch."""
    import torch

    from benchmarks.torch_mobilenetv2 import TorchMobileNetV2

    torch.set_num_threads(2)
    model = TorchMobileNetV2(10, 0.5, "cifar").train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM)
    criterion = torch.nn.CrossEntropyLoss()

    def step(x, labels):
        x, labels = torch.tensor(x).contiguous(memory_format=torch.channels_last), torch.tensor(labels)
        optimizer.zero_grad()
        logits = model(x)
        loss = criterion(logits, labels)
        loss.backward()
        optimizer.step()
        return loss.item(), (logits.argmax(1) == labels).float().mean().item()

    return step


def child(engine, data, steps):
    """Print the seconds for 50,000 pictures, and how much of them the loop waited for the loader."""
    train, _ = load_cifar10(data)
    batches = Batches(train, BATCH, seed=0, augment=True, drop_last=True, mean=MEAN, std=STD)
    step = scratchnet_step() if engine == "scratchnet" else torch_step()
    waited, times, done = 0.0, [], 0
    before = time.perf_counter()
    for x, labels in batches.epoch(0):
        got = time.perf_counter()
        step(x, labels)
        now = time.perf_counter()
        if done >= 3:  # the first ones fill buffers
            waited += got - before
            times.append(now - before)
        done, before = done + 1, now
        if steps and done == steps + 3:
            break
    scale = PICTURES / BATCH / len(times)
    print(json.dumps({"seconds": sum(times) * scale, "waited": waited * scale}))


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with CIFAR-10's binary batches, or their archive")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child, args.data, args.steps)
    env = os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
    found: dict = {engine: [] for engine in ENGINES}
    print(head(KERNELS[:1]))
    print(f"seconds for 50,000 pictures, from {args.steps or 'all'} steps of {BATCH}; ratio > 1: scratchnet is faster")
    for _ in range(args.rounds):
        for engine in ENGINES:
            command = [sys.executable, __file__, "--child", engine, "--data", args.data, "--steps", str(args.steps)]
            done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
            found[engine].append(json.loads(done.stdout.splitlines()[-1]))
        ours, theirs = (found[engine][-1] for engine in ENGINES)
        print(
            f"scratchnet {ours['seconds']:.0f} (waited {ours['waited']:.1f}), PyTorch {theirs['seconds']:.0f} "
            f"(waited {theirs['waited']:.1f}): {theirs['seconds'] / ours['seconds']:.2f}×",
            flush=True,
        )
    ratio = statistics.median(
        t["seconds"] / o["seconds"] for o, t in zip(found["scratchnet"], found["torch-channels-last"], strict=True)
    )
    print(f"median ratio {ratio:.2f}×")
    save(args.json, found | {"ratio": ratio}, KERNELS[:1])


if __name__ == "__main__":
    main()
