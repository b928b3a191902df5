"""A module's step on the device, for the tests on CuPy and on its stand-in."""

import copy

from scratchnet.array import to_device


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
