"""One inverted residual block, forward and backward, in scratchnet and in other engines on the CPU.

    python benchmarks/peers.py [--rounds 3] [--json FILE]      an engine that is not installed is left out

The block: 1×1 convolution 32 → 192, depthwise 3×3, 1×1 convolution 192 → 32, each with batch norm in training mode, ReLU6
after the first two; 16×16 maps, batch 64, float32, gradients of x and of all nine parameters. Every engine runs in a child
process, in turn, as its own documentation would have it written: MyGrad (eager NumPy) has no grouped convolution, so that
its depthwise one is nine shifted products; JAX and tinygrad compile the step before it is measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from engines import ROOT, time_of
from machine import KERNELS, head, save

N, C, WIDE, SIZE = 64, 32, 192, 16
SHAPES = [(WIDE, C, 1, 1), (WIDE,), (WIDE,), (WIDE, 1, 3, 3), (WIDE,), (WIDE,), (C, WIDE, 1, 1), (C,), (C,)]
SECONDS = 4.0
TIMEOUT = 120.0


def arrays():
    """X, dy and the parameters: weight, batch norm's weight and bias, three times."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, N, C, SIZE, SIZE), dtype=np.float32)
    return x, dy, [rng.standard_normal(shape, dtype=np.float32) for shape in SHAPES]


def scratchnet():
    """The block as a Sequential."""
    import scratchnet as sn

    x, dy, parameters = arrays()
    sn.set_num_threads(2)
    block = sn.Sequential(
        sn.Conv2d(C, WIDE, 1, bias=False), sn.BatchNorm2d(WIDE), sn.ReLU6(),
        sn.Conv2d(WIDE, WIDE, 3, padding=1, groups=WIDE, bias=False), sn.BatchNorm2d(WIDE), sn.ReLU6(),
        sn.Conv2d(WIDE, C, 1, bias=False), sn.BatchNorm2d(C),
    )  # fmt: skip
    for parameter, value in zip(block.parameters(), parameters, strict=True):
        parameter.data[...] = value
    x, dy = (sn.as_images(np.ascontiguousarray(a.transpose(1, 2, 3, 0))) for a in (x, dy))

    def step():
        block.zero_grad()
        y = block(x)
        return y, block.backward(dy)

    return step


def torch():
    """Eager, channels_last, the faster of the two formats for this block."""
    import torch
    from torch import nn
    from torch.nn import functional as f

    torch.set_num_threads(2)
    x, dy, parameters = arrays()
    x, dy = (torch.tensor(a).to(memory_format=torch.channels_last) for a in (x, dy))
    x.requires_grad_()
    w1, g1, b1, w2, g2, b2, w3, g3, b3 = leaves = [nn.Parameter(torch.tensor(p)) for p in parameters]

    def step():
        z = f.relu6(f.batch_norm(f.conv2d(x, w1), None, None, g1, b1, True))
        z = f.relu6(f.batch_norm(f.conv2d(z, w2, padding=1, groups=WIDE), None, None, g2, b2, True))
        y = f.batch_norm(f.conv2d(z, w3), None, None, g3, b3, True)
        return y, torch.autograd.grad(y, [x, *leaves], dy)[0]

    return step


def mygrad():
    """Eager, on NumPy."""
    import mygrad as mg
    from mygrad.nnet.layers import batchnorm, conv_nd

    x, dy, parameters = arrays()

    def step():
        t = mg.tensor(x)
        w1, g1, b1, w2, g2, b2, w3, g3, b3 = [mg.tensor(p) for p in parameters]
        z = mg.clip(batchnorm(conv_nd(t, w1, stride=1), gamma=g1, beta=b1, eps=1e-5), 0, 6)
        zeros_h = np.zeros((N, WIDE, 1, SIZE), np.float32)
        zeros_w = np.zeros((N, WIDE, SIZE + 2, 1), np.float32)
        p = mg.concatenate([zeros_w, mg.concatenate([zeros_h, z, zeros_h], axis=2), zeros_w], axis=3)
        taps = [
            w2[:, 0, i, j].reshape(-1, 1, 1) * p[:, :, i : i + SIZE, j : j + SIZE] for i in range(3) for j in range(3)
        ]
        z = mg.clip(batchnorm(mg.add_sequence(*taps), gamma=g2, beta=b2, eps=1e-5), 0, 6)
        y = batchnorm(conv_nd(z, w3, stride=1), gamma=g3, beta=b3, eps=1e-5)
        y.backward(dy)
        return y.data, t.grad

    return step


def jax():
    """Compiled by XLA."""
    import jax
    import jax.numpy as jnp

    x, dy, parameters = arrays()

    def conv(x, w, groups=1):
        pad = "SAME"
        return jax.lax.conv_general_dilated(x, w, (1, 1), pad, feature_group_count=groups)

    def norm(z, g, b):
        mean, var = z.mean((0, 2, 3), keepdims=True), z.var((0, 2, 3), keepdims=True)
        return (z - mean) / jnp.sqrt(var + 1e-5) * g[:, None, None] + b[:, None, None]

    def block(x, w1, g1, b1, w2, g2, b2, w3, g3, b3):
        z = jnp.clip(norm(conv(x, w1), g1, b1), 0, 6)
        z = jnp.clip(norm(conv(z, w2, WIDE), g2, b2), 0, 6)
        return norm(conv(z, w3), g3, b3)

    @jax.jit
    def both(dy, *arguments):
        y, back = jax.vjp(block, *arguments)
        return y, back(dy)

    def step():
        y, gradients = jax.block_until_ready(both(dy, x, *parameters))
        return y, gradients[0]

    return step


def tinygrad():
    """Compiled by its own JIT for the CPU."""
    from tinygrad import Tensor, TinyJit

    x, dy, parameters = arrays()
    Tensor.training = True
    fixed = [Tensor(a).realize() for a in (x, dy, *parameters)]

    def norm(z, g, b):
        mean = z.mean((0, 2, 3), keepdim=True)
        centred = z - mean
        inv_std = ((centred * centred).mean((0, 2, 3), keepdim=True) + 1e-5).rsqrt()
        return centred * inv_std * g.reshape(1, -1, 1, 1) + b.reshape(1, -1, 1, 1)

    @TinyJit
    def both(x, dy, *parameters):
        leaves = [a.detach() for a in (x, *parameters)]
        for leaf in leaves:
            leaf.requires_grad = True
        x, w1, g1, b1, w2, g2, b2, w3, g3, b3 = leaves
        z = norm(x.conv2d(w1), g1, b1).relu6()
        z = norm(z.conv2d(w2, groups=WIDE, padding=1), g2, b2).relu6()
        y = norm(z.conv2d(w3), g3, b3)
        gradients = (y * dy).sum().gradient(*leaves)
        return [a.realize() for a in (y, *gradients)]

    def step():
        y, dx, *_ = both(*fixed)
        return y.numpy(), dx.numpy()

    return step


ENGINES = {engine.__name__: engine for engine in (scratchnet, torch, mygrad, jax, tinygrad)}


def child(name):
    """Print seconds a step, and the results' checksums, by which the engines are held to have computed the same."""
    step = ENGINES[name]()
    y, dx = (np.asarray(a.detach() if hasattr(a, "detach") else a, np.float64) for a in step())
    sums = [float(np.abs(a).sum()) for a in (y, dx)]
    print(json.dumps({"seconds": time_of(step, SECONDS), "sums": sums}))


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child)
    env = os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
    names = [name for name in ENGINES if find_spec(name)]
    found: dict = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            command = [sys.executable, __file__, "--child", name]
            done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=TIMEOUT)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    print(head(KERNELS[:1]))
    print(f"{'engine':<12} {'ms':>8} {'ratio':>7}   of each round       sum of |y|, of |dx|")
    for name in names:
        ratios = [p["seconds"] / o["seconds"] for p, o in zip(found[name], found["scratchnet"], strict=True)]
        ms = statistics.median(r["seconds"] for r in found[name]) * 1e3
        rows.append({"engine": name, "ms": ms, "ratio": statistics.median(ratios), "ratios": ratios})
        each = " ".join(f"{r:.2f}" for r in ratios)
        sums = ", ".join(f"{s:.6g}" for s in found[name][0]["sums"])
        print(f"{name:<12} {ms:>8.2f} {rows[-1]['ratio']:>6.2f}×   {each:<18}  {sums}", flush=True)
    save(args.json, rows, KERNELS[:1])


if __name__ == "__main__":
    main()
