"""The same network in scratchnet and in PyTorch, each measured in a child process of its own; what the benchmarks share.

Run as a program this file *is* the child: `engines.py ENGINE SPEC` prints one JSON line, seconds a step and peak memory.
"""

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
sys.path.insert(0, str(ROOT))  # for models/, which is not installed
ENGINES = ("scratchnet", "torch-nchw", "torch-channels-last")
SECONDS = 4.0  # each child measures for about so long
TIMEOUT = 90.0  # seconds; a child that takes longer has failed
LR, MOMENTUM = 0.05, 0.9


def spec(variant, width, size, batch, threads=2, training=True):
    """What a child is to measure."""
    return {
        "variant": variant, "width": width, "size": size, "batch": batch, "threads": threads, "training": training,
    }  # fmt: skip


def scratchnet_step(variant, width, size, batch, threads, training=True):
    """A function that does one step: forward, loss, backward, SGD; without training the logits, batch norm folded."""
    import scratchnet as sn
    from models import MobileNetV2
    from scratchnet.training.optim import SGD

    sn.set_num_threads(threads)
    rng = np.random.default_rng(0)
    model = MobileNetV2(10, width, variant, rng=rng)
    x = sn.as_images(rng.standard_normal((3, size, size, batch), dtype=np.float32))
    labels = rng.integers(0, 10, batch)
    if not training:
        folded = model.fold_batch_norm()
        return lambda: folded(x)
    optimizer = SGD(model.parameters(), LR, MOMENTUM)
    criterion = sn.CrossEntropyLoss()

    def step():
        model.zero_grad()
        loss = criterion(model(x), labels)
        model.backward(criterion.backward())
        optimizer.step()
        return float(loss)

    return step


def torch_step(variant, width, size, batch, threads, training=True, channels_last=False):
    """The same step in PyTorch, eager; without training in eval and inference mode."""
    import torch

    from benchmarks.torch_mobilenetv2 import TorchMobileNetV2

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = TorchMobileNetV2(10, width, variant).train(training).to(memory_format=layout)
    x = torch.randn(batch, 3, size, size).to(memory_format=layout)
    labels = torch.randint(0, 10, (batch,))
    if not training:
        return torch.inference_mode()(lambda: model(x))
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM)
    criterion = torch.nn.CrossEntropyLoss()

    def step():
        optimizer.zero_grad()
        loss = criterion(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def child(engine, what):
    """Measure one engine and print a JSON line: seconds a step (the median), peak memory in MiB."""
    if engine == "scratchnet":
        step = scratchnet_step(**what)
    else:
        step = torch_step(**what, channels_last=engine == "torch-channels-last")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time_of(step, SECONDS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"seconds": seconds, "peak_mib": peak / 1024}))


def time_of(step, seconds):
    """The median time of a call, over calls that take about so many seconds and are at least three."""
    step()
    step()
    times = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(engine, what):
    """Run a child; None where it crashes or does not end (PyTorch's channels_last does both in some geometries)."""
    command = [sys.executable, __file__, engine, json.dumps(what)]
    env = os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return None
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def compare(name, what, rounds):
    """Every engine in turn, several rounds: a round's ratio is PyTorch's better time over ours in that round."""
    ratios, failed = [], set()
    times, memory = {engine: [] for engine in ENGINES}, {engine: [] for engine in ENGINES}
    for _ in range(rounds):
        found = {engine: measure(engine, what) for engine in ENGINES if engine not in failed}
        failed |= {engine for engine, result in found.items() if not result}  # it would again
        for engine, result in found.items():
            if result:
                times[engine].append(result["seconds"] / what["batch"] * 1e3)
                memory[engine].append(result["peak_mib"])
        if not found["scratchnet"]:
            raise SystemExit(f"scratchnet's child failed for {name}: {__file__} scratchnet '{json.dumps(what)}'")
        best = min(r["seconds"] for e, r in found.items() if r and e != "scratchnet")
        ratios.append(best / found["scratchnet"]["seconds"])
    middle = {engine: statistics.median(values) for engine, values in times.items() if values}
    peaks = {engine: statistics.median(values) for engine, values in memory.items() if values}
    peer = min((e for e in middle if e != "scratchnet"), key=middle.get)
    return {
        "case": name, **what, "ms_per_picture": middle, "peak_mib": peaks, "best_peer": peer, "ratios": ratios,
        "ratio": statistics.median(ratios), "memory_ratio": peaks["scratchnet"] / peaks[peer],
    }  # fmt: skip


HEAD = (
    f"{'case':<22} {'scratchnet':>11} {'nchw':>8} {'ch. last':>9} {'ratio':>7}  {'of each round':<25} "
    f"{'MiB':>6} {'peer':>6} {'memory':>7}"
)


def line(row):
    """A row of the table under HEAD."""
    ms = [f"{row['ms_per_picture'][e]:.3f}" if e in row["ms_per_picture"] else "failed" for e in ENGINES]
    each = " ".join(f"{r:.2f}" for r in row["ratios"])
    mib = row["peak_mib"]["scratchnet"], row["peak_mib"][row["best_peer"]]
    return (
        f"{row['case']:<22} {ms[0]:>11} {ms[1]:>8} {ms[2]:>9} {row['ratio']:>6.2f}×  {each:<25} "
        f"{mib[0]:>6.0f} {mib[1]:>6.0f} {row['memory_ratio']:>6.2f}×"
    )


def table(cases, rounds, path=None):
    """Print a row for each name: spec, and write the numbers as JSON where a path is given."""
    print(f"numpy {np.__version__}, {rounds} rounds; ms a picture; ratio > 1: scratchnet is faster than PyTorch's best")
    print(HEAD, flush=True)
    rows = []
    for name, what in cases.items():
        rows.append(compare(name, what, rounds))
        print(line(rows[-1]), flush=True)
    if path:
        path.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    child(sys.argv[1], json.loads(sys.argv[2]))
