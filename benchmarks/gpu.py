"""All that is to be known of a machine with an NVIDIA GPU, in about ten minutes; goes to the end of docs/results/gpu.md.

    python benchmarks/gpu.py [--data FOLDER] [--batch 512] [--width 1.0]   (extras `cuda13`, `bf16`, `bench`, `test`)

1. The tests that need a GPU, compute-sanitizer among them.
2. A training step of MobileNetV2, launched from Python and recorded, beside PyTorch on the same card: eager, and compiled
   with CUDA graphs (mode="reduce-overhead"), which is the one to beat. Every engine runs alone, one after the other, until
   its time is up; a step's time is the median over blocks of ten steps between two events on the device. The time to the
   first steps is what the compiling and recording of the first three takes.
3. Where a recorded step's time goes, kernel by kernel, by PyTorch's profiler.
4. What each kernel moves, in GB/s, against what a plain copy moves on the same card.
5. With --data: `train_cifar.py --preset gpu` at that width, to its accuracy, with the time that it took.

What fails stands in the report as such, and the rest goes on.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from machine import head

import scratchnet as sn
from models import MobileNetV2
from scratchnet.array import as_images
from scratchnet.device import import_cupy, use_tf32
from scratchnet.kernels.cuda import activation, norm, rows
from scratchnet.kernels.cuda.depthwise import depthwise_backward, depthwise_forward
from scratchnet.training.trainer import train_step

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "results" / "gpu.md"
MARK = "<!-- measured by benchmarks/gpu.py: what stands below is replaced by its next run -->\n"
BLOCK = 10  # steps between two events
PEER = "PyTorch compile (reduce-overhead), channels_last, AMP bfloat16"
OURS = (("float32", False, False), ("TF32", True, False), ("bfloat16", False, True))  # name, TF32, bfloat16
THEIRS = (  # name, AMP, channels_last, compiled
    ("PyTorch eager, TF32", False, False, False),
    ("PyTorch eager, channels_last, TF32", False, True, False),
    ("PyTorch eager, AMP bfloat16", True, False, False),
    ("PyTorch eager, channels_last, AMP bfloat16", True, True, False),
    (PEER, True, True, True),
)


def tests(args):
    """How the tests that need a GPU end."""
    environment = {**os.environ, "SCRATCHNET_REQUIRE_GPU": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=line"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    said = [line for line in lines if re.match(r"(FAILED|ERROR|SKIPPED)", line)]
    return ["## `SCRATCHNET_REQUIRE_GPU=1 pytest -m gpu`\n", f"Exit code {done.returncode}: {lines[-1]}", *said]


# A step ---------------------------------------------------------------------------------------------------------------


def steps(args):
    """A training step of every engine, and its ratio to PyTorch's compiled one in mixed precision."""
    cupy = import_cupy()
    times, failed = {}, []
    for name, tf32, bfloat16 in OURS:
        for recorded in (False, True):
            use_tf32(tf32)
            step = our_step(cupy, args, bfloat16, recorded)
            times[f"scratchnet, {name}, {'recorded' if recorded else 'eager'}"] = cupy_ms(cupy, step, args.seconds)
            cupy.get_default_memory_pool().free_all_blocks()
    use_tf32(False)
    for name, *how in THEIRS:
        try:
            times[name] = torch_ms(args, *how)
        except Exception as error:  # a compiler's trouble is no reason to lose the others
            failed.append(f"{name}: failed, {type(error).__name__}: {str(error).splitlines()[0]}")
    title = f"## A training step: MobileNetV2 cifar, width {args.width}, batch {args.batch}, 32×32\n"
    return [title, *step_table(times, args.batch), *failed]


def step_table(times, batch):
    """Lines of the report: of every engine (ms a step, seconds to the first three)."""
    peer = times[PEER][0] if PEER in times else float("nan")
    return [
        f"| engine | ms a step | pictures/s | times as fast as {PEER} | s to the first three |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {ms:.2f} | {1000 * batch / ms:,.0f} | {peer / ms:.2f} | {first:.1f} |"
            for name, (ms, first) in times.items()
        ),
    ]


def profile(args):
    """The kernels of a recorded step in bfloat16, by time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watching

    cupy = import_cupy()
    step = our_step(cupy, args, bfloat16=True, recorded=True)
    for _ in range(3):
        step()
    cupy.cuda.Device().synchronize()
    with watching(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(BLOCK):
            step()
        cupy.cuda.Device().synchronize()
    found = [(event.device_time_total / BLOCK / 1e3, event.count / BLOCK, event.key) for event in seen.key_averages()]
    return ["## Where a recorded step in bfloat16 spends its time\n", *kernel_table(found)]


def kernel_table(found, most=40):
    """Lines of the report: (ms a step, launches a step, kernel), the longest first."""
    found = sorted((row for row in found if row[0]), reverse=True)
    total, launches = sum(row[0] for row in found), sum(row[1] for row in found)
    return [
        f"{total:.2f} ms in {launches:.0f} kernels.\n",
        "| kernel | ms a step | launches | µs each |\n| --- | --- | --- | --- |",
        *(f"| {key[:90]} | {ms:.3f} | {n:.1f} | {1e3 * ms / n:.1f} |" for ms, n, key in found[:most]),
    ]


def median_ms(step, make_event, elapsed, seconds):
    """(median time of a step in ms, seconds that the first three took); `elapsed(start, end)` waits for the end."""
    before, began, ended = time.perf_counter(), make_event(), make_event()
    began.record()
    for _ in range(3):  # compiles, records, and fills the memory pool
        step()
    ended.record()
    elapsed(began, ended)
    first = time.perf_counter() - before
    times: list[float] = []
    while sum(times) * BLOCK < 1000 * seconds or len(times) < 3:
        start, end = make_event(), make_event()
        start.record()
        for _ in range(BLOCK):
            step()
        end.record()
        times.append(elapsed(start, end) / BLOCK)
    return statistics.median(times), first


def cupy_ms(cupy, step, seconds):
    """`median_ms` of a step of ours."""

    def elapsed(start, end):
        end.synchronize()
        return cupy.cuda.get_elapsed_time(start, end)

    return median_ms(step, cupy.cuda.Event, elapsed, seconds)


def our_step(cupy, args, bfloat16, recorded):
    """A training step on random pictures that stay where they are."""
    rng = np.random.default_rng(0)
    model = MobileNetV2(10, args.width, "cifar", dropout=0.0, rng=rng).to("cuda")
    optimizer = sn.SGD(model.named_parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    maps = cupy.asarray(rng.standard_normal((3, 32, 32, args.batch), dtype=np.float32))
    x = as_images(rows.narrow(maps) if bfloat16 else maps)
    labels, criterion = cupy.asarray(rng.integers(0, 10, args.batch)), sn.CrossEntropyLoss(0.1)
    if not recorded:
        return lambda: train_step(model, criterion, optimizer, x, labels)
    half = sn.RecordedStep(model, criterion)

    def step():
        half(x, labels)
        if half.why_not:
            raise RuntimeError(f"not recorded: {half.why_not}")
        optimizer.step()

    return step


def torch_ms(args, amp, channels_last, compiled):
    """`median_ms` of a step of PyTorch's: TF32 where float32 is multiplied; with `amp` bfloat16."""
    import torch
    from torch_mobilenetv2 import TorchMobileNetV2

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = TorchMobileNetV2(10, args.width, "cifar", dropout=0.0).cuda().to(memory_format=layout)
    run = torch.compile(model, mode="reduce-overhead") if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    x = torch.randn(args.batch, 3, 32, 32, device="cuda").to(memory_format=layout)
    labels, criterion = (
        torch.randint(0, 10, (args.batch,), device="cuda"),
        torch.nn.CrossEntropyLoss(label_smoothing=0.1),
    )

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=amp):
            loss = criterion(run(x), labels)
        loss.backward()
        optimizer.step()

    def elapsed(start, end):
        end.synchronize()
        return start.elapsed_time(end)

    return median_ms(step, lambda: torch.cuda.Event(enable_timing=True), elapsed, args.seconds)


# Kernels --------------------------------------------------------------------------------------------------------------


def kernels(args):
    """What the kernels that are bound by memory move, on a wide activation, in either way to store it."""
    cupy = import_cupy()
    lines = ["## Kernels, on 96 channels of 32×32\n"]
    for dtype in ("float32", "bfloat16"):
        rates = [(name, size / cupy_ms(cupy, call, 1)[0] / 1e6) for name, call, size in calls(cupy, args, dtype)]
        lines += [f"| {dtype} | GB/s | of a copy's |\n| --- | --- | --- |"]
        lines += [f"| {name} | {rate:,.0f} | {rate / rates[0][1]:.2f} |" for name, rate in rates] + [""]
        cupy.get_default_memory_pool().free_all_blocks()
    return lines


def calls(cupy, args, dtype):
    """(name, the call, bytes that it moves)."""
    maps = cupy.asarray(np.random.default_rng(0).standard_normal((96, 32, 32, args.batch), dtype=np.float32))
    maps = rows.narrow(maps) if dtype == "bfloat16" else maps
    weight, scale = cupy.ones((96, 1, 3, 3), "float32"), cupy.ones(96, "float32")
    x, matrix, geometry = as_images(maps), maps.reshape(96, -1), ((1, 1), (1, 1), (1, 1))
    mean, _, inv_std, _ = norm.row_statistics(matrix, 1e-5)
    y, one = activation.relu6_forward(x)[0], maps.nbytes
    cache = norm.batch_norm_forward(x, scale, scale, 1e-5)[3]
    return [
        ("copy", maps.copy, 2 * one),
        ("statistics", lambda: norm.row_statistics(matrix, 1e-5), one),
        ("normalise + ReLU6", lambda: norm.normalise(matrix, mean, inv_std, scale, scale, clip=True), 2 * one),
        ("batch norm backward", lambda: norm.batch_norm_backward(x, cache), 5 * one),
        ("ReLU6 backward", lambda: activation.relu6_backward(x, y), 3 * one),
        ("depthwise forward", lambda: depthwise_forward(maps, weight, *geometry), 2 * one),
        ("depthwise backward", lambda: depthwise_backward(maps, maps, weight, *geometry), 4 * one),
    ]


# Accuracy -------------------------------------------------------------------------------------------------------------


def accuracy(args):
    """A whole training by the program."""
    if not args.data:
        return ["## Accuracy\n", "Not measured: no --data."]
    flags = ["--preset", "gpu", "--width", str(args.width), "--epochs", str(args.epochs)]
    flags += ["--device", args.device, "--precision", args.precision, "--data", str(args.data), "--out", str(args.out)]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "train_cifar.py", *flags], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    result = json.loads((args.out / "result.json").read_text())
    return [
        f"## Accuracy: `train_cifar.py {' '.join(flags[:-4])}`\n",
        f"Test accuracy {result['test_accuracy']:.4f}, loss {result['test_loss']:.4f}, epoch {result['best_epoch']} of "
        f"{args.epochs}, seed 0, {seconds:.0f} s in all, on {result['data']['name']}, data {result['data']['sha256']}.",
    ]


def main():
    """Measure, write the report after each part, print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=10, help="of measuring, for each engine")
    parser.add_argument("--data", type=Path, help="CIFAR-10, as train_cifar.py takes it")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--precision", default="bf16", help="of the training")
    parser.add_argument("--device", default="cuda", help="of the training")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu-best")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    try:
        import_cupy()
    except sn.DeviceError as error:
        sys.exit(f"benchmarks/gpu.py: error: {error}")
    text = [f"# Measured\n\n{machine()} `python benchmarks/gpu.py {' '.join(sys.argv[1:])}`\n"]
    for part in args.only:
        try:
            text += [*PARTS[part](args), ""]
        except Exception as error:  # the other parts are worth having
            text += [f"## {part}\n\nFailed: {type(error).__name__}: {error}\n"]
        known = REPORT.read_text(encoding="utf-8").partition(MARK)[0]
        REPORT.write_text("\n".join([known + MARK, *text]), encoding="utf-8")
        print(f"{part} done", flush=True)
    print("\n".join(text))


PARTS = {"tests": tests, "steps": steps, "profile": profile, "kernels": kernels, "accuracy": accuracy}


def machine():
    """The card and the versions, as a sentence."""
    cupy = import_cupy()
    card = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return f"{card}, CuPy {cupy.__version__}; {head(())}."


if __name__ == "__main__":
    main()
