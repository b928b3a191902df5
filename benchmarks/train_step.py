"""One training step (forward, loss, backward, SGD) against PyTorch's eager mode on the same cores.

    python benchmarks/train_step.py [--rounds 3] [--threads 2] [--case blog-32 …] [--json FILE]     (extra `bench`)

Every engine runs in a child process of its own, one after another, several rounds, PyTorch in both its memory
formats; a round's ratio is PyTorch's better time over ours in that round, and the median of the rounds is reported,
so that what else the machine does falls on both. Peak memory is the child's largest resident set, less what it held
before the first step. Times are the median step.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CASES = {  # name: (variant, width, picture size, batch)
    "blog-96": ("blog", 0.5, 96, 64),
    "blog-32": ("blog", 0.5, 32, 128),
    "cifar-0.5": ("cifar", 0.5, 32, 128),
    "cifar-1.0": ("cifar", 1.0, 32, 64),
}
ENGINES = ("scratchnet", "torch-nchw", "torch-channels-last")
SECONDS = 4.0  # each child measures for about so long
TIMEOUT = 40.0  # seconds; a child that takes longer has failed
LR, MOMENTUM = 0.05, 0.9


def scratchnet_step(variant, width, size, batch, threads):
    """A function that does one step, and the dtype it computes in."""
    import scratchnet as sn
    from models import MobileNetV2
    from scratchnet.training.optim import SGD

    sn.set_num_threads(threads)
    rng = np.random.default_rng(0)
    model = MobileNetV2(10, width, variant, rng=rng)
    optimizer = SGD(model.parameters(), LR, MOMENTUM)
    criterion = sn.CrossEntropyLoss()
    x = sn.as_images(rng.standard_normal((3, size, size, batch), dtype=np.float32))
    labels = rng.integers(0, 10, batch)

    def step():
        model.zero_grad()
        loss = criterion(model(x), labels)
        model.backward(criterion.backward())
        optimizer.step()
        return float(loss)

    return step


def torch_step(variant, width, size, batch, threads, channels_last):
    """The same step in PyTorch."""
    import torch

    from benchmarks.torch_mobilenetv2 import TorchMobileNetV2

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = TorchMobileNetV2(10, width, variant).train().to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM)
    criterion = torch.nn.CrossEntropyLoss()
    x = torch.randn(batch, 3, size, size).to(memory_format=layout)
    labels = torch.randint(0, 10, (batch,))

    def step():
        optimizer.zero_grad()
        loss = criterion(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def child(engine, case, threads):
    """Measure one engine and print a JSON line: seconds a step, peak memory in MiB."""
    variant, width, size, batch = CASES[case]
    if engine == "scratchnet":
        step = scratchnet_step(variant, width, size, batch, threads)
    else:
        step = torch_step(variant, width, size, batch, threads, engine == "torch-channels-last")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        step()
    times = []
    while sum(times) < SECONDS or len(times) < 5:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"seconds": statistics.median(times), "peak_mib": peak / 1024}))


def measure(engine, case, threads):
    """Run a child; None where it crashes or does not end (PyTorch's channels_last does both in some geometries)."""
    command = [sys.executable, __file__, "--child", engine, "--case", case, "--threads", str(threads)]
    env = os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return None
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def compare(case, rounds, threads):
    """The row of one case."""
    batch = CASES[case][3]
    ratios, times, memory = [], {engine: [] for engine in ENGINES}, {engine: [] for engine in ENGINES}
    for _ in range(rounds):
        found = {engine: measure(engine, case, threads) for engine in ENGINES}
        for engine, result in found.items():
            if result:
                times[engine].append(result["seconds"] / batch * 1e3)
                memory[engine].append(result["peak_mib"])
        if not found["scratchnet"]:
            raise SystemExit(f"scratchnet's child failed for {case}: run it with --child scratchnet --case {case}")
        ratios.append(
            min(r["seconds"] for e, r in found.items() if r and e != "scratchnet") / found["scratchnet"]["seconds"]
        )
    middle = {engine: statistics.median(values) for engine, values in times.items() if values}
    peaks = {engine: statistics.median(values) for engine, values in memory.items() if values}
    best = min((e for e in middle if e != "scratchnet"), key=middle.get)
    return {
        "case": case, "ms_per_picture": middle, "peak_mib": peaks, "best_peer": best, "ratios": ratios,
        "ratio": statistics.median(ratios), "memory_ratio": peaks["scratchnet"] / peaks[best],
    }  # fmt: skip


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child, args.case[0], args.threads)
    print(
        f"numpy {np.__version__}, {args.threads} threads, {args.rounds} rounds; ms a picture; ratio > 1: we are faster"
    )
    heads = f"{'nchw':>8} {'ch. last':>9} {'ratio':>7}  {'of each round':<22} {'MiB':>6} {'peer':>6} {'memory':>7}"
    print(f"{'case':<10} {'scratchnet':>11} {heads}")
    rows = []
    for case in args.case:
        row = compare(case, args.rounds, args.threads)
        rows.append(row)
        ms = [f"{row['ms_per_picture'][e]:.3f}" if e in row["ms_per_picture"] else "failed" for e in ENGINES]
        each = " ".join(f"{r:.2f}" for r in row["ratios"])
        mib = row["peak_mib"]["scratchnet"], row["peak_mib"][row["best_peer"]]
        print(
            f"{case:<10} {ms[0]:>11} {ms[1]:>8} {ms[2]:>9} {row['ratio']:>6.2f}×  {each:<22} {mib[0]:>6.0f} {mib[1]:>6.0f} "
            f"{row['memory_ratio']:>6.2f}×",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
