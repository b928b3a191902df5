"""Each step of the network at its real sizes, forward and backward, against the same layers in PyTorch.

    python benchmarks/layers.py [--case cifar-1.0] [--json FILE]     (extra `bench`)

A step is one of the plan's: three fused layers, or one. PyTorch runs the same layers, eager, in the faster
of its two memory formats. GFLOP/s counts two operations a multiply-add, three times (y, dx, dweight), for convolutions and
linear layers; GB/s counts x, y, dy, x again and dx once each, for everything. An element is a number of the larger of x
and y.
"""

import argparse
import os
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "passive"  # before PyTorch is loaded: its threads are not to spin while ours compute

import numpy as np
import torch
from engines import spec, time_of
from machine import KERNELS, cores, head, save
from profile_step import batch_for, kind
from torch import nn
from train_step import CASES

import scratchnet as sn
from scratchnet.parallel.threads import computing
from scratchnet.trace import trace_step

SECONDS = 0.3


def steps_of(what):
    """(step, shape of x, how often it comes, multiply-adds a picture) of every distinct step of the network, in order."""
    model, x, labels = batch_for(what)
    found: dict = {}
    traced = trace_step(model, sn.CrossEntropyLoss(), x, labels)
    for step, line in zip(sn.plan(model).steps, traced, strict=True):
        if not step.layers[0].named_children():  # no end of a shortcut
            key = kind(step.layers), line.shape_in, tuple(p.data.shape for la in step.layers for p in la.parameters())
            found[key] = step, (len(x), *line.shape_in), found.get(key, (0, 0, 0))[2] + 1, line.multiply_adds
    return found


def in_torch(layer):
    """The same layer in PyTorch, or None for one that this table leaves out."""
    if isinstance(layer, sn.Conv2d):
        sizes = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        return nn.Conv2d(layer.in_channels, layer.out_channels, *sizes, layer.groups, layer.bias is not None)
    if isinstance(layer, sn.BatchNorm2d):
        return nn.BatchNorm2d(layer.weight.data.size)
    if isinstance(layer, sn.Linear):
        return nn.Linear(*layer.weight.data.shape[::-1])
    return {"ReLU6": nn.ReLU6(), "GlobalAvgPool2d": nn.AdaptiveAvgPool2d(1), "Flatten": nn.Flatten()}.get(layer.name)


def ours(step, x):
    """A function that does forward and backward, and the shape of y."""
    y = step.forward(x)
    dy = sn.as_images(np.random.default_rng(1).standard_normal((*y.shape[1:], y.shape[0]), dtype=np.float32))

    def both():
        step.forward(x)
        step.backward(dy)

    return both, y.shape


def theirs(layers, shape, layout):
    """The same in PyTorch."""
    model = nn.Sequential(*map(in_torch, layers)).to(memory_format=layout)
    x = torch.randn(shape)
    x = (x.to(memory_format=layout) if len(shape) == 4 else x).requires_grad_()
    dy = torch.randn(model(x).shape)
    dy = dy.to(memory_format=layout) if dy.ndim == 4 else dy
    wanted = [x, *model.parameters()]
    return lambda: torch.autograd.grad(model(x), wanted, dy)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, default="cifar-1.0")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--kernels", choices=KERNELS, default=KERNELS[0])
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    what = spec(*CASES[args.case], args.threads)
    sn.use_kernels(args.kernels)
    sn.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    print(head([args.kernels]))
    print(f"{args.case}, batch {what['batch']}, {args.threads} threads; forward and backward")
    print(
        f"{'step':<28} {'x':<16} {'y':<16} {'×':>2} {'ms':>8} {'ns/el':>6} {'GFLOP/s':>8} {'GB/s':>6} {'torch ms':>9} ratio"
    )
    rows = []
    for (name, _, _), (step, shape, count, work) in steps_of(what).items():
        if any(in_torch(layer) is None for layer in step.layers):
            continue
        x = np.random.default_rng(0).standard_normal((*shape[1:], shape[0]), dtype=np.float32)
        with computing():
            both, y_shape = ours(step, sn.as_images(x))
            mine = time_of(both, SECONDS)
        layouts = [torch.contiguous_format] + [torch.channels_last] * (len(shape) == 4)
        peer = min(time_of(theirs(step.layers, shape, layout), SECONDS) for layout in layouts)
        with computing():
            mine = (mine + time_of(both, SECONDS)) / 2  # once before the peer, once after it
        inside, outside = x.size, int(np.prod(y_shape))
        row = {
            "step": name, "x": shape[1:], "y": y_shape[1:], "count": count, "ms": mine * 1e3,
            "ns_per_element": mine * 1e9 / max(inside, outside), "gflops": 6 * work * shape[0] / mine / 1e9,
            "gbps": 4 * (3 * inside + 2 * outside) / mine / 1e9, "torch_ms": peer * 1e3, "ratio": peer / mine,
        }  # fmt: skip
        rows.append(row)
        sizes = "×".join(map(str, row["x"])), "×".join(map(str, row["y"]))
        numbers = f"{row['ms']:>8.3f} {row['ns_per_element']:>6.2f} {row['gflops']:>8.1f} {row['gbps']:>6.1f}"
        print(
            f"{name.replace('BatchNorm2d', 'BN'):<28} {sizes[0]:<16} {sizes[1]:<16} {count:>2} {numbers} "
            f"{row['torch_ms']:>9.3f} {row['ratio']:.2f}×",
            flush=True,
        )
    save(args.json, rows, [args.kernels])


if __name__ == "__main__":
    main()
