"""The same network in scratchnet and in PyTorch, each measured in child processes of its own; what the benchmarks share.

An engine has one of four modes:

threads     one process, as many threads as the case says.
ranks       scratchnet's processes that share the batch (scratchnet/parallel/ranks.py), each with its share of the threads,
            started by mpiexec: what the trainer does with --ranks.
processes   the same number of processes, each with its share of the threads and of the same batch, started together,
            without exchange of gradients: an upper bound of what any training over processes can reach.
ddp         PyTorch's DistributedDataParallel as its documentation has it: the same processes, which exchange gradients
            through gloo over loopback.

All processes of an engine take equally many steps at the same time, and what counts is the slowest's median step.

Run as a program this file *is* a child: `engines.py JOB`. When it is warm it prints the seconds of a step, reads how many
steps it is to take, and prints one JSON line: seconds a step, peak memory. Of several ranks the first speaks for all.
"""

import contextlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from machine import KERNELS, cores, head, save

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for models/, which is not installed
FORMATS = ("nchw", "channels-last")
MODES = ("threads", "ranks", "processes", "ddp")
SECONDS = 4.0  # each child measures for about so long
TIMEOUT = 90.0  # seconds; children that take longer have failed
LR, MOMENTUM = 0.05, 0.9


class Engine(NamedTuple):
    """What computes: a library, its kernels (scratchnet) or memory format (PyTorch), and a mode."""

    library: str
    version: str
    mode: str = "threads"

    def __str__(self):
        return f"{self.library}-{self.version}" + ("" if self.mode == "threads" else f", {self.mode}")


class Failed(Exception):
    """A child crashed or did not end in time (PyTorch's channels_last does both in some geometries)."""


def spec(variant, width, size, batch, threads=2, training=True):
    """What an engine is to compute; `variant` is one of MobileNetV2's, or the name of a ResNet."""
    return {
        "variant": variant, "width": width, "size": size, "batch": batch, "threads": threads, "training": training,
    }  # fmt: skip


# In a child -----------------------------------------------------------------------------------------------------------


def scratchnet_step(variant, width, size, batch, threads, training=True, kernels=True):
    """A function that does one step (forward, loss, backward, SGD; without training the logits, batch norm folded).

    And how many steps of the plan each version of the kernels computes.
    """
    import scratchnet as sn
    from models import MobileNetV2, resnet
    from scratchnet.training.optim import SGD

    def network(width, **options):
        if variant in resnet.ResNet.NAMES:
            return resnet.ResNet(**resnet.ResNet.NAMES[variant], num_classes=10, width_mult=width, **options)
        return MobileNetV2(10, width, variant, **options)

    sn.use_kernels(kernels)
    sn.set_num_threads(threads)
    if kernels == "compiled":  # load Numba and the loops: code is no part of what a step takes
        tiny = network(0.2)
        tiny.backward(0 * tiny(sn.as_images(np.zeros((3, 32, 32, 2), np.float32))))
    rng = np.random.default_rng(0)
    model = network(width, rng=rng)
    x = sn.as_images(rng.standard_normal((3, size, size, batch), dtype=np.float32))
    labels = rng.integers(0, 10, batch)
    model = model if training else sn.fold_batch_norm(model)
    planned = sn.plan(model)
    pairs = [step.pair(planned.kind) for step in planned.steps]
    ran = Counter(pair.version for pair in pairs if pair)
    if not training:
        return lambda: model(x), ran
    optimizer = SGD(model.parameters(), LR, MOMENTUM)
    criterion = sn.CrossEntropyLoss()

    def step():
        model.zero_grad()
        loss = criterion(model(x), labels)
        model.backward(criterion.backward())
        sn.ranks.sum_gradients(model.parameters())  # nothing, where this is the only one
        optimizer.step()
        return float(loss)

    return step, ran


def torch_step(variant, width, size, batch, threads, training=True, channels_last=False, group=None):
    """The same step in PyTorch, eager; without training in eval and inference mode.

    With a group (rank, processes, path of a file that they share) it is a step of DistributedDataParallel.
    """
    import torch

    from benchmarks.torch_mobilenetv2 import TorchMobileNetV2
    from benchmarks.torch_resnet import TorchResNet
    from models.resnet import DEPTHS

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if variant.startswith("resnet"):
        model = TorchResNet(DEPTHS[int(variant.removeprefix("resnet"))], 10, width)
    else:
        model = TorchMobileNetV2(10, width, variant)
    model = model.train(training).to(memory_format=layout)
    x = torch.randn(batch, 3, size, size).to(memory_format=layout)
    labels = torch.randint(0, 10, (batch,))
    if not training:
        return torch.inference_mode()(lambda: model(x))
    if group:
        rank, processes, path = group
        torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=processes)
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM)
    criterion = torch.nn.CrossEntropyLoss()

    def step():
        optimizer.zero_grad()
        loss = criterion(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def child(job):
    """Measure one process of an engine, beside the others; what is said to the parent stands at the top of this file."""
    engine, what, ran = Engine(*job["engine"]), job["what"], {}
    ranks: Any = SimpleNamespace(
        rank=0, traffic=SimpleNamespace(), largest=float, sum_over_ranks=float, from_first=lambda make: make()
    )
    if engine.mode == "ranks":
        from scratchnet import ranks

        ranks.start()
        here = ranks.share(what["batch"])
        what = what | {"batch": here.stop - here.start}
    if engine.library == "scratchnet":
        step, ran = scratchnet_step(**what, kernels=engine.version)
    else:
        group = job["group"] if engine.mode == "ddp" else None
        step = torch_step(**what, channels_last=engine.version == "channels-last", group=group)
    before = peak_mib()
    step()
    step()
    warm = ranks.largest(_timed(step))
    if ranks.rank == 0:
        print(warm, flush=True)
    steps = ranks.from_first(lambda: int(sys.stdin.readline()))
    waits = wait_apart() if job["apart"] else []
    sent = vars(ranks.traffic).copy()
    times = [_timed(step) for _ in range(steps)]
    traffic = {name: (number - sent[name]) / steps for name, number in vars(ranks.traffic).items()}
    traffic["waiting"] = sum(waits) / steps
    peak = peak_mib()
    said = {
        "seconds": ranks.largest(statistics.median(times)), "ran": ran,
        "peak_mib": ranks.sum_over_ranks(peak - before), "rss_mib": ranks.sum_over_ranks(peak),
        "traffic": {name: ranks.largest(number) for name, number in traffic.items()},
    }  # fmt: skip
    if ranks.rank == 0:
        print(json.dumps(said), flush=True)
    ranks.from_first(sys.stdin.readline)  # stay till all are done: the others may still talk to this one


def wait_apart():
    """Let the ranks wait for the slowest before each exchange; the seconds that this one waits are appended to the list."""
    from scratchnet import ranks

    seconds: list = []

    def after_all(exchange):
        def exchange_after(*arrays):
            start = time.perf_counter()
            ranks._world.comm.Barrier()
            seconds.append(time.perf_counter() - start)
            return exchange(*arrays)

        return exchange_after

    for name in ("gather", "exchange"):
        setattr(ranks._world, name, after_all(getattr(ranks._world, name)))
    return seconds


def peak_mib():
    """The largest resident set of this process so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes there, KiB elsewhere


def time_of(step, seconds):
    """The median time of a call, over calls that take about so many seconds and are at least three."""
    step()
    step()
    times = []
    while sum(times) < seconds or len(times) < 3:
        times.append(_timed(step))
    return statistics.median(times)


def _timed(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


# In the parent --------------------------------------------------------------------------------------------------------


def measure(engine, what, processes=1, seconds=SECONDS, timeout=TIMEOUT, apart=False):
    """Run an engine's children for about so many seconds: those of a step of the whole batch, and the sums of their memory.

    Of ranks also what a step sends and how long it waits (`ranks.traffic`); with `apart` the ranks wait for the slowest
    before each exchange, which makes them slower, but tells waiting from sending.

    Raises:
        Failed: one of them did.
    """
    count = processes if engine.mode in ("processes", "ddp") else 1
    with tempfile.TemporaryDirectory() as folder:
        children = []
        watch = threading.Timer(timeout, lambda: [process.kill() for process in children])
        watch.start()
        try:
            for rank in range(count):
                children.append(_start(engine, what, rank, processes, Path(folder), apart))
            warm = [process.stdout.readline() for process in children]
            if all(warm):
                steps = max(3, math.ceil(seconds / max(map(float, warm))))
                said = [json.loads(line) for line in _answers(children, f"{steps}\n") if line]
                if len(said) == count:
                    return {
                        "seconds": max(each["seconds"] for each in said),
                        "ran": said[0]["ran"], "traffic": said[0]["traffic"],
                        "peak_mib": sum(each["peak_mib"] for each in said),
                        "rss_mib": sum(each["rss_mib"] for each in said),
                    }  # fmt: skip
            late = f"not done after {timeout:.0f} s" if watch.finished.is_set() else None
            raise Failed(late or _why(children, Path(folder)))
        finally:
            watch.cancel()
            for process in children:
                process.kill()
                process.wait()
                with contextlib.suppress(OSError):
                    process.stdin.close()
                process.stdout.close()


def _start(engine, what, rank, count, folder, apart):
    job = {"engine": engine, "what": what, "group": (rank, count, str(folder / "store")), "apart": apart}
    env = os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
    if engine.mode != "threads":
        share = what["batch"] * (rank + 1) // count - what["batch"] * rank // count
        threads = max(1, what["threads"] // count)
        job["what"] = what | {"batch": what["batch"] if engine.mode == "ranks" else share, "threads": threads}
        env |= {"OMP_NUM_THREADS": str(threads)} | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})
    with open(folder / f"{rank}.err", "w") as errors:
        command = [sys.executable, __file__, json.dumps(job)]
        if engine.mode == "ranks":
            command = [*mpiexec(count), *command]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        return subprocess.Popen(command, **pipes, text=True, env=env, cwd=ROOT)


def mpiexec(count):
    """The start of a command that runs so many ranks."""
    from scratchnet.program.mpiexec import CannotStart, Mpiexec

    try:
        return [Mpiexec().path, "-n", str(count)]
    except CannotStart as why:
        raise Failed(str(why)) from None


def _answers(children, line):
    """Say a line to all at once, and read one from each."""
    with contextlib.suppress(BrokenPipeError):
        for process in children:
            process.stdin.write(line)
            process.stdin.flush()
    return [process.stdout.readline() for process in children]


def _why(children, folder):
    """The last line that a failed child wrote, or how it ended."""
    codes = []
    for process in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
        codes.append(process.returncode)
    texts = [path.read_text().strip() for path in sorted(folder.glob("*.err"))]
    last = next((text.splitlines()[-1] for text in texts if text), "no message")
    return f"exit codes {codes}: {last}"


def engines(kernels=KERNELS[:1], modes=("threads",)):
    """All that a case is measured with, in the order in which they take turns."""
    ours = [Engine("scratchnet", which, mode) for mode in modes if mode != "ddp" for which in kernels]
    return ours + [Engine("torch", layout, mode) for mode in modes if mode != "ranks" for layout in FORMATS]


def compare(name, what, rounds, kernels=KERNELS[:1], modes=("threads",), processes=None):
    """Every engine in turn, several rounds; a row for each of `kernels`, which share PyTorch's times.

    A round's ratios are, for each mode, the better time of PyTorch's two formats over scratchnet's with threads; "best" is
    the better of PyTorch's threads and DDP over the better of scratchnet's threads and ranks: what a user can have of both.
    """
    processes = processes or cores()
    if processes == 1:
        modes = ("threads",)
    everything = engines(kernels, modes)
    found: dict = {engine: [] for engine in everything}
    failed = {}
    for _ in range(rounds):
        for engine in everything:
            if engine in failed:  # it would again
                continue
            try:
                found[engine].append(measure(engine, what, processes))
            except Failed as why:
                failed[engine] = str(why)
                if engine == Engine("scratchnet", engine.version):
                    raise SystemExit(f"{engine} failed for {name}: {why}") from None
    lasting = {engine: results for engine, results in found.items() if engine not in failed}
    return [_row(name, what, which, modes, processes, lasting, failed) for which in kernels]


def _row(name, what, which, modes, processes, found, failed):
    ours = Engine("scratchnet", which)
    seconds = {engine: [result["seconds"] for result in results] for engine, results in found.items()}
    ms = {str(e): statistics.median(times) / what["batch"] * 1e3 for e, times in seconds.items()}
    peaks, rss = (
        {str(engine): statistics.median(result[key] for result in results) for engine, results in found.items()}
        for key in ("peak_mib", "rss_mib")
    )
    peers = {mode: [e for e in seconds if e.library == "torch" and e.mode == mode] for mode in modes}
    best = {mode: min(map(str, some), key=ms.get) for mode, some in peers.items() if some}
    times = {mode: [min(each) for each in zip(*map(seconds.get, some), strict=True)] for mode, some in peers.items()}
    ratios = {mode: _over(times[mode], seconds[ours]) for mode in best}
    if "processes" in best and (alike := ours._replace(mode="processes")) in seconds:
        ratios["processes of both"] = _over(times["processes"], seconds[alike])
    if (shared := ours._replace(mode="ranks")) in seconds:
        theirs = [times[mode] for mode in ("threads", "ddp") if mode in best]
        ratios["best"] = _over(map(min, *theirs, theirs[0]), map(min, seconds[ours], seconds[shared]))
    return {
        "case": name, **what, "kernels": which, "ran": found[ours][0]["ran"], "processes": processes,
        "ms_per_picture": ms, "peak_mib": peaks, "rss_mib": rss, "best_peer": best, "ratios": ratios,
        "ratio": {mode: statistics.median(each) for mode, each in ratios.items()},
        "memory_ratio": {mode: peaks[str(ours)] / peaks[peer] for mode, peer in best.items()},
        "seconds": {str(engine): each for engine, each in seconds.items()},
        "failed": {str(engine): why for engine, why in failed.items()},
    }  # fmt: skip


def _over(theirs, ours):
    return [t / o for t, o in zip(theirs, ours, strict=True)]


# The table ------------------------------------------------------------------------------------------------------------

UNITS = "ms a picture, PyTorch's in the better of its formats (n: NCHW, c: channels_last)"
LEGEND = "ratio > 1: scratchnet's threads are faster"
PROCESSES = (
    "ranks and DDP: {0} processes that share the batch; procs: {0} independent ones, no exchange: an upper bound\n"
    "best: the better of PyTorch's threads and DDP over the better of scratchnet's threads and ranks"
)
HEAD = (
    f"{'':<33}{'scratchnet':>23} {'PyTorch':>26} {'ratio to PyTorch':>28}   {'':<25} {'peak MiB':>20}\n"
    f"{'case':<22} {'kernels':<9} {'threads':>7} {'ranks':>7} {'procs':>7} {'threads':>8} {'procs':>8} {'DDP':>8} "
    f"{'threads':>7} {'procs':>6} {'DDP':>6} {'best':>6}   {'threads, of each round':<25} "
    f"{'ours':>6} {'peer':>6} {'ratio':>6}"
)


def line(row):
    """A row of the table under HEAD."""
    ms = row["ms_per_picture"]
    ours = f"scratchnet-{row['kernels']}"
    shared, alone = (f"{ms[name]:.3f}" if (name := f"{ours}, {mode}") in ms else "–" for mode in ("ranks", "processes"))
    modes = [mode for mode in MODES if mode != "ranks"]
    theirs = [_peer(row, mode) for mode in modes]
    ratios = [f"{row['ratio'][mode]:.2f}×" if mode in row["ratio"] else "–" for mode in (*modes, "best")]
    each = " ".join(f"{r:.2f}" for r in row["ratios"].get("threads", ()))
    peer, memory = row["best_peer"].get("threads"), row["memory_ratio"].get("threads")
    mib = [f"{row['peak_mib'][ours]:.0f}", f"{row['peak_mib'][peer]:.0f}" if peer else "–"]
    return (
        f"{row['case']:<22} {row['kernels']:<9} {ms[ours]:>7.3f} {shared:>7} {alone:>7} "
        f"{theirs[0]:>8} {theirs[1]:>8} {theirs[2]:>8} {ratios[0]:>7} {ratios[1]:>6} {ratios[2]:>6} {ratios[3]:>6}   "
        f"{each:<25} {mib[0]:>6} {mib[1]:>6} {f'{memory:.2f}×' if peer else '–':>6}"
    )


def _peer(row, mode):
    if best := row["best_peer"].get(mode):
        return f"{row['ms_per_picture'][best]:.3f}{'n' if 'nchw' in best else 'c'}"
    return "failed" if any(str(Engine("torch", layout, mode)) in row["failed"] for layout in FORMATS) else "–"


def begin(kernels, threads, rounds, modes=("threads",), processes=None):
    """Print what stands above the table."""
    compile_once(kernels)
    print(head(kernels))
    print(f"{threads} threads, {rounds} round{'s' * (rounds != 1)}; {UNITS}; {LEGEND}")
    if len(modes) > 1:
        print(PROCESSES.format(processes or cores()))
    print(HEAD, flush=True)


def compile_once(kernels):
    """Have the loops compiled and kept on disk, so that no child's time limit has it."""
    if "compiled" in kernels:
        measure(Engine("scratchnet", "compiled"), spec("cifar", 0.25, 32, 2, 1), seconds=0.1, timeout=600)


def table(cases, rounds, path=None, **how):
    """Print the rows of each name: spec, and write the numbers as JSON where a path is given; `how` as in `compare`."""
    kernels = how.get("kernels", KERNELS[:1])
    threads = next(iter(cases.values()))["threads"]
    begin(kernels, threads, rounds, how.get("modes", ()), how.get("processes"))
    rows = []
    for name, what in cases.items():
        for row in compare(name, what, rounds, **how):
            rows.append(row)
            print(line(row), flush=True)
    save(path, rows, kernels)
    return rows


if __name__ == "__main__":
    child(json.loads(sys.argv[1]))
