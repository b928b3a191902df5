"""A module's step, and the program, on the device: for the tests on CuPy and on its stand-in."""

import copy

import pytest

import train_cifar
from scratchnet.array import to_device
from scratchnet.training.shapes import draw_shapes


def on_the_host(values):
    return {name: to_device(value, "cpu") for name, value in values.items()}


def step_on_the_device(module, x, dy):
    """As `test_conformance.step`, on the device."""
    module = copy.deepcopy(module).to("cuda")
    x, dy = to_device(x, "cuda"), to_device(dy, "cuda") if dy.ndim else float(dy)
    module.zero_grad()
    arrays = {"y": module(x), "dx": module.backward(dy)}
    arrays |= {f"gradient of {name}": parameter.grad for name, parameter in module.named_parameters()}
    return on_the_host(arrays | module.state_dict())


def train_on_a_few_shapes(*arguments):
    """The program's exit code, after an epoch of three steps on 18 drawn pictures."""

    def few(seed):
        counts = zip(draw_shapes(seed=seed), (20, 6), strict=True)
        return tuple(part._replace(images=part.images[:n], labels=part.labels[:n]) for part, n in counts)

    flags = ["--sample", "--width", "0.1", "--epochs", "1", "--lr", "1e-3", "--batch-size", "6"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cifar, "draw_shapes", few)
        return train_cifar.main([*flags, *arguments])
