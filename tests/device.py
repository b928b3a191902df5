"""A module's step, and the program, on the device: for the tests on CuPy and on its stand-in."""

import copy

import numpy as np
import pytest
from conformance import EPS32, MODES, ROWS, Case, close, step
from strategies import in_layout

import scratchnet as sn
import train_cifar
from models import MobileNetV2
from scratchnet.array import to_device
from scratchnet.data.dataset import Dataset
from scratchnet.data.shapes import draw_shapes
from scratchnet.device import bfloat16_dtype
from scratchnet.program import data as program_data
from scratchnet.training.batches import Batches
from scratchnet.training.trainer import train_step

HALF_ULP = 2.0**-8  # of a number in bfloat16, relative, at most
TAKEN = {  # rows of the conformance table, and how many units of 2^-8 of the largest number an array may be off
    "pointwise, stride": 2,  # half a unit each: the weight, the product, in dx the sum over taps
    "dense, no bias": 2,
    "grouped, no bias": 2,
    "depthwise, more than 64 pixels": 1,
    "batch norm": 1,
    "batch norm, one channel": 1,
    "batch norm of features": 1,
    "batch norm of sequences": 1,
    "ReLU6": 1,
    "ReLU6 of features": 1,
    "global average pool": 1,
    "sequential, empty": 1,
    "residual, empty": 1,
    "residual in slabs": 2,
    "stem": 4,
    "stem in parts": 4,
    "1×1, norm, ReLU6": 4,
    "depthwise, batch norm, ReLU6": 4,
    "depthwise, batch norm, ReLU6 in slabs": 4,
    "projection": 4,
    "projection with shortcut": 4,
    "block with shortcut": 16,
    "projections added": 4,
    "concat": 4,
    "multiply": 8,
    "squeeze and excitation": 8,
    "block, stride": 16,
    "block in slabs": 16,
}


def on_the_host(values):
    return {name: to_device(value, "cpu") for name, value in values.items()}


def step_on_the_device(module, x, dy):
    """As `conformance.step`, on the device."""
    module = copy.deepcopy(module).to("cuda")
    x, dy = to_device(x, "cuda"), to_device(dy, "cuda") if dy.ndim else float(dy)
    module.zero_grad()
    arrays = {"y": module(x), "dx": module.backward(dy)}
    arrays |= {f"gradient of {name}": parameter.grad for name, parameter in module.named_parameters()}
    return on_the_host(arrays | module.state_dict())


def on_a_few_shapes(*arguments):
    """The program's exit code, where drawn pictures are 20 to train and validate with, 6 for the test."""

    def few(seed):
        counts = zip(draw_shapes(seed=seed), (20, 6), strict=True)
        return tuple(part._replace(images=part.images[:n], labels=part.labels[:n]) for part, n in counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program_data, "draw_shapes", few)
        return train_cifar.main([*arguments, "--sample"])


def train_on_a_few_shapes(*arguments):
    """The program's exit code, after an epoch of three steps on 18 drawn pictures."""
    return on_a_few_shapes("--width", "0.1", "--epochs", "1", "--lr", "1e-3", "--batch-size", "6", *arguments)


def held_to_the_cpu(case, dtype, fast, ulps):
    """A case's step on the device, with kernels or without, which is that of the layers' files in float64 on the CPU."""
    sn.use_kernels(fast)
    got = step_on_the_device(*case.build(dtype))
    sn.use_kernels(False)
    close(got, step(*case.build(np.float64)), 1e-11 if dtype == np.float64 else ulps * EPS32)
    return got


def held_in_bfloat16(row, mode, units):
    """A row's step in bfloat16, within so many `HALF_ULP` of the layers' files in float64; what it gave, its x and dy."""
    module, x, dy = case_in_bfloat16(row, mode)
    got = step_on_the_device(module, x, dy)
    sn.use_kernels(False)
    want = step(Case(row, mode).build(np.float64)[0], x.astype(np.float64), dy.astype(np.float64))
    close(got, want, units * HALF_ULP)
    return got, x, dy


def batches(device, **options):
    """Four batches of noise, the last of two pictures."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (23, 3, 16, 18), dtype=np.uint8)
    data = Dataset(images, rng.integers(0, 10, 23), tuple("abcdefghij"), "noise")
    return Batches(data, 7, seed=3, device=device, **options)


def halved(x):
    """Rounded to bfloat16, channel-major."""
    return in_layout(x.astype(bfloat16_dtype()), "channel-major") if x.ndim else x


def case_in_bfloat16(row, mode):
    """Module in float32, x and dy in what it takes: what comes out of the global pooling is float32."""
    module, x, dy = Case(row, mode).build(np.float32)
    return module, halved(x), dy if "global" in row.name else halved(dy)


def run_every_kernel():
    """Call every kernel for the device: the conformance table, steps of both networks, either way to store activations."""
    for row in ROWS:
        for mode in MODES:
            step_on_the_device(*Case(row, mode).build(np.float32))
        module, x, _ = Case(row, "eval").build(np.float32)
        module.eval().to("cuda")(to_device(x, "cuda"))
    for variant, optimizer, bfloat16 in (("cifar", sn.SGD, False), ("blog", sn.Adam, True)):
        model = MobileNetV2(10, 0.1, variant, rng=np.random.default_rng(4)).to("cuda")
        update = optimizer(model.named_parameters(), lr=1e-3)
        for x, labels in batches("cuda", augment=True, bfloat16=bfloat16).epoch(0):
            train_step(model, sn.CrossEntropyLoss(0.1), update, x, labels)
        sn.RMSprop(model.parameters()).step()
        model.eval()(x)
