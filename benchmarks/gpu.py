"""One training step of MobileNetV2 on an NVIDIA GPU against PyTorch on the same card; writes docs/results/gpu.md.

    python benchmarks/gpu.py [--batch 512] [--width 1.0] [--seconds 20]     (extras `cuda13` or `cuda12`, and `bench`)

Every engine runs alone, one after the other, until its time is up; a step's time is the median over blocks of ten steps
between two events on the device. Beside them stands what each kernel moves, in GB/s, against what a plain copy moves on
the same card. All of it takes about ten minutes, most of which is torch.compile.
"""

import argparse
import platform
import statistics
from pathlib import Path

import numpy as np

import scratchnet as sn
from models import MobileNetV2
from scratchnet.array import as_images, import_cupy, use_tf32
from scratchnet.kernels import gpu_norm, gpu_rows
from scratchnet.kernels.gpu_conv import depthwise_backward, depthwise_forward
from scratchnet.training.trainer import train_step

REPORT = Path(__file__).parents[1] / "docs" / "results" / "gpu.md"
BLOCK = 10  # steps between two events


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


# scratchnet -----------------------------------------------------------------------------------------------------------


def cupy_ms(cupy, step, seconds):
    """Median time of a step of ours."""

    def elapsed(start, end):
        end.synchronize()
        return cupy.cuda.get_elapsed_time(start, end)

    return median_ms(step, cupy.cuda.Event, elapsed, seconds)


def our_step(cupy, args):
    """A training step on random pictures that stay where they are."""
    rng = np.random.default_rng(0)
    model = MobileNetV2(10, args.width, "cifar", dropout=0.0, rng=rng).to("cuda")
    optimizer = sn.SGD(model.named_parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    x = as_images(cupy.asarray(rng.standard_normal((3, 32, 32, args.batch), dtype=np.float32)))
    labels, criterion = cupy.asarray(rng.integers(0, 10, args.batch)), sn.CrossEntropyLoss(0.1)
    return lambda: train_step(model, criterion, optimizer, x, labels)


def kernels(cupy, args):
    """(name, the call, bytes that it moves) for the kernels that are bound by memory, on a wide activation."""
    maps = cupy.asarray(np.random.default_rng(0).standard_normal((96, 32, 32, args.batch), dtype=np.float32))
    weight, scale = cupy.ones((96, 1, 3, 3), "float32"), cupy.ones(96, "float32")
    x, rows, geometry = as_images(maps), maps.reshape(96, -1), ((1, 1), (1, 1), (1, 1))
    mean, _, inv_std = gpu_rows.row_statistics(rows, 1e-5)
    y, one = gpu_norm.relu6_forward(x)[0], maps.nbytes
    cache = gpu_norm.batch_norm_forward(x, scale, scale, 1e-5)[3]
    return [
        ("copy", maps.copy, 2 * one),
        ("statistics", lambda: gpu_rows.row_statistics(rows, 1e-5), one),
        ("normalise + ReLU6", lambda: gpu_rows.normalise(rows, mean, inv_std, scale, scale, clip=True), 2 * one),
        ("batch norm backward", lambda: gpu_norm.batch_norm_backward(x, cache), 5 * one),
        ("ReLU6 backward", lambda: gpu_norm.relu6_backward(x, y), 3 * one),
        ("depthwise forward", lambda: depthwise_forward(maps, weight, *geometry), 2 * one),
        ("depthwise backward", lambda: depthwise_backward(maps, maps, weight, *geometry), 4 * one),
    ]


# PyTorch --------------------------------------------------------------------------------------------------------------


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


def main():
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=20, help="of measuring, for each engine")
    args = parser.parse_args()
    cupy = import_cupy()
    rows = []
    for name, tf32 in (("scratchnet, float32", False), ("scratchnet, TF32", True)):
        use_tf32(tf32)
        rows.append((name, cupy_ms(cupy, our_step(cupy, args), args.seconds)))
    bandwidth = [(name, size / cupy_ms(cupy, call, 2) / 1e6) for name, call, size in kernels(cupy, args)]
    cupy.get_default_memory_pool().free_all_blocks()
    for name, amp, compiled in (
        ("PyTorch eager, TF32", False, False),
        ("PyTorch eager, channels_last, AMP bfloat16", True, False),
        ("PyTorch compile, channels_last, AMP bfloat16", True, True),
    ):
        rows.append((name, torch_ms(args, amp, compiled)))
    REPORT.write_text(report(cupy, args, rows, bandwidth), encoding="utf-8")
    print(REPORT.read_text(encoding="utf-8"))


def report(cupy, args, rows, bandwidth):
    """The report's text."""
    import torch

    card = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    copied = bandwidth[0][1]
    lines = [
        "# On a GPU\n",
        f"{card}, Python {platform.python_version()}, CuPy {cupy.__version__}, PyTorch {torch.__version__}. "
        f"`python benchmarks/gpu.py --batch {args.batch} --width {args.width} --seconds {args.seconds:g}`, seed 0.\n",
        f"A training step of MobileNetV2 cifar, width {args.width}, batch {args.batch}, 32×32.\n",
        "| engine | ms a step | pictures/s |\n| --- | --- | --- |",
        *(f"| {name} | {ms:.2f} | {1000 * args.batch / ms:,.0f} |" for name, ms in rows),
        "\nKernels, on 96 channels of 32×32, float32.\n",
        "| kernel | GB/s | of a copy's |\n| --- | --- | --- |",
        *(f"| {name} | {rate:,.0f} | {rate / copied:.2f} |" for name, rate in bandwidth),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
