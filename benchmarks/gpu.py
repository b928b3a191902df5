"""All that is to be known of a machine with an NVIDIA GPU, in about ten minutes; writes docs/results/gpu.md as it goes.

    python benchmarks/gpu.py [--data FOLDER] [--batch 512] [--width 1.0]   (extras `cuda13`, `bf16`, `bench`, `test`)

1. The tests that need a GPU, compute-sanitizer among them.
2. A training step of MobileNetV2, beside PyTorch on the same card. Every engine runs alone, one after the other, until its
   time is up; a step's time is the median over blocks of ten steps between two events on the device.
3. What each kernel moves, in GB/s, against what a plain copy moves on the same card.
4. With --data: `train_cifar.py --preset best` at that width, to its accuracy, with the time that it took.

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
BLOCK = 10  # steps between two events
PEER = "PyTorch eager, channels_last, AMP bfloat16"


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
    """A training step of every engine, and its ratio to PyTorch's eager mode in mixed precision."""
    cupy = import_cupy()
    times = {}
    for name, tf32, bfloat16 in (("float32", False, False), ("TF32", True, False), ("bfloat16", False, True)):
        use_tf32(tf32)
        times[f"scratchnet, {name}"] = cupy_ms(cupy, our_step(cupy, args, bfloat16), args.seconds)
        cupy.get_default_memory_pool().free_all_blocks()
    use_tf32(False)
    for name, amp, compiled in (
        ("PyTorch eager, TF32", False, False),
        (PEER, True, False),
        ("PyTorch compile, channels_last, AMP bfloat16", True, True),
    ):
        times[name] = torch_ms(args, amp, compiled)
    return [
        f"## A training step: MobileNetV2 cifar, width {args.width}, batch {args.batch}, 32×32\n",
        "| engine | ms a step | pictures/s | times as fast as eager AMP |\n| --- | --- | --- | --- |",
        *(
            f"| {name} | {ms:.2f} | {1000 * args.batch / ms:,.0f} | {times[PEER] / ms:.2f} |"
            for name, ms in times.items()
        ),
    ]


def median_ms(step, make_event, elapsed, seconds):
    """Median time of a step in ms; `elapsed(start, end)` waits for the end."""
    for _ in range(3):  # compiles, and fills the memory pool
        step()
    times: list[float] = []
    while sum(times) * BLOCK < 1000 * seconds or len(times) < 3:
        start, end = make_event(), make_event()
        start.record()
        for _ in range(BLOCK):
            step()
        end.record()
        times.append(elapsed(start, end) / BLOCK)
    return statistics.median(times)


def cupy_ms(cupy, step, seconds):
    """Median time of a step of ours."""

    def elapsed(start, end):
        end.synchronize()
        return cupy.cuda.get_elapsed_time(start, end)

    return median_ms(step, cupy.cuda.Event, elapsed, seconds)


def our_step(cupy, args, bfloat16):
    """A training step on random pictures that stay where they are."""
    rng = np.random.default_rng(0)
    model = MobileNetV2(10, args.width, "cifar", dropout=0.0, rng=rng).to("cuda")
    optimizer = sn.SGD(model.named_parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    maps = cupy.asarray(rng.standard_normal((3, 32, 32, args.batch), dtype=np.float32))
    x = as_images(rows.narrow(maps) if bfloat16 else maps)
    labels, criterion = cupy.asarray(rng.integers(0, 10, args.batch)), sn.CrossEntropyLoss(0.1)
    return lambda: train_step(model, criterion, optimizer, x, labels)


def torch_ms(args, amp, compiled):
    """Median time of a step of PyTorch's: TF32 where float32 is multiplied; with `amp` bfloat16 and channels_last."""
    import torch
    from torch_mobilenetv2 import TorchMobileNetV2

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if amp else torch.contiguous_format
    model = TorchMobileNetV2(10, args.width, "cifar", dropout=0.0).cuda().to(memory_format=layout)
    run = torch.compile(model) if compiled else model
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
        rates = [(name, size / cupy_ms(cupy, call, 1) / 1e6) for name, call, size in calls(cupy, args, dtype)]
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
    flags = ["--preset", "best", "--width", str(args.width), "--epochs", str(args.epochs)]
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
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--precision", default="bf16", help="of the training")
    parser.add_argument("--device", default="cuda", help="of the training")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu-best")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    try:
        import_cupy()
    except sn.DeviceError as error:
        sys.exit(f"benchmarks/gpu.py: error: {error}")
    text = [f"# On a GPU\n\n{machine()} `python benchmarks/gpu.py {' '.join(sys.argv[1:])}`\n"]
    for part in args.only:
        try:
            text += [*PARTS[part](args), ""]
        except Exception as error:  # the other parts are worth having
            text += [f"## {part}\n\nFailed: {type(error).__name__}: {error}\n"]
        REPORT.write_text("\n".join(text), encoding="utf-8")
        print(f"{part} done", flush=True)
    print(REPORT.read_text(encoding="utf-8"))


PARTS = {"tests": tests, "steps": steps, "kernels": kernels, "accuracy": accuracy}


def machine():
    """The card and the versions, as a sentence."""
    cupy = import_cupy()
    card = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return f"{card}, CuPy {cupy.__version__}; {head(())}."


if __name__ == "__main__":
    main()
