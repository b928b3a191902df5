"""Clipping: PyTorch's norm and gradients, in place, frozen parameters left out, and nothing waited for on a GPU."""

import math

import numpy as np
import pytest
from hostmodule import has_compiler

import scratchnet as sn
from scratchnet.array import to_device

SHAPES = ((3, 4, 2, 5), (7,), (), (6, 2))


def make(dtype=np.float64, scale=3.0):
    rng = np.random.default_rng(0)
    made = [sn.Parameter(np.zeros(shape, dtype)) for shape in SHAPES]
    for parameter in made:
        parameter.grad[...] = scale * rng.standard_normal(parameter.data.shape)
    return made


def twins(parameters):
    torch = pytest.importorskip("torch")
    made = [torch.tensor(p.data.copy(), requires_grad=True) for p in parameters]
    for twin, p in zip(made, parameters, strict=True):
        twin.grad = torch.tensor(p.grad.copy())
    return torch, made


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.5, math.inf])
@pytest.mark.parametrize("max_norm", [0.7, 1e3])
def test_the_norm_and_what_is_clipped_are_pytorch_s(norm_type, max_norm):
    parameters = make()
    torch, theirs = twins(parameters)
    places = [p.grad for p in parameters]
    total = sn.clip_grad_norm_(iter(parameters), max_norm, norm_type)
    want = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    assert total.shape == () and total.dtype == np.float64
    np.testing.assert_allclose(total, want.numpy(), rtol=1e-14)
    for p, twin, place in zip(parameters, theirs, places, strict=True):
        assert p.grad is place
        np.testing.assert_allclose(p.grad, twin.grad.numpy(), rtol=1e-14)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("norm_type", [2.0, math.inf])
def test_what_is_not_finite_becomes_what_it_becomes_in_pytorch(bad, norm_type):
    parameters = make()
    parameters[0].grad[1, 2, 0, 3] = bad
    torch, theirs = twins(parameters)
    with np.errstate(all="ignore"):
        total = sn.clip_grad_norm_(parameters, 1.0, norm_type)
    want = torch.nn.utils.clip_grad_norm_(theirs, 1.0, norm_type)
    np.testing.assert_array_equal(total, want.numpy())
    for p, twin in zip(parameters, theirs, strict=True):
        np.testing.assert_array_equal(p.grad, twin.grad.numpy())
    parameters = make()
    parameters[1].grad[3] = bad
    before = [p.grad.copy() for p in parameters]
    with pytest.raises(RuntimeError, match="norm of the gradients is (inf|nan), which is not finite"):
        sn.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
    for p, grad in zip(parameters, before, strict=True):
        np.testing.assert_array_equal(p.grad, grad)


def test_by_value():
    parameters = make()
    parameters[1].grad[2] = np.nan
    torch, theirs = twins(parameters)
    sn.clip_grad_value_(parameters, 0.9)
    torch.nn.utils.clip_grad_value_(theirs, 0.9)
    for p, twin in zip(parameters, theirs, strict=True):
        np.testing.assert_array_equal(p.grad, twin.grad.numpy())
    assert abs(parameters[0].grad).max() == 0.9


@pytest.mark.parametrize(
    "clip", [lambda some: sn.clip_grad_norm_(some, 0.5), lambda some: sn.clip_grad_value_(some, 0.5)]
)
def test_frozen_ones_count_for_nothing_and_float32_stays(clip):
    parameters = make(np.float32)
    alone = make(np.float32)
    parameters[0].requires_grad = False
    kept = parameters[0].grad.copy()
    assert np.array_equal(clip(parameters), clip(alone[1:])) or clip(parameters) is None
    np.testing.assert_array_equal(parameters[0].grad, kept)
    for p, other in zip(parameters[1:], alone[1:], strict=True):
        assert p.grad.dtype == np.float32
        np.testing.assert_allclose(p.grad, other.grad, rtol=1e-6)


def test_one_parameter_none_and_two_dtypes():
    one = make()[0]
    assert float(sn.clip_grad_norm_(one, 1.0)) > 1 and float(sn.clip_grad_norm_(one, 1.0)) == pytest.approx(1, abs=1e-5)
    assert sn.clip_grad_norm_([], 1.0) == 0
    mixed = [*make(), *make(np.float32)]
    total = sn.clip_grad_norm_(mixed, 1.0)
    assert float(total) == pytest.approx(2**0.5 * float(sn.clip_grad_norm_(make(), 1.0)), rel=1e-6)
    assert {p.grad.dtype for p in mixed} == {np.dtype(np.float32), np.dtype(np.float64)}


def test_as_before_step_it_clips_every_step():
    parameter = sn.Parameter(np.zeros(4))
    optimizer = sn.SGD([parameter], lr=1.0)
    optimizer.before_step = lambda optimizer: sn.clip_grad_norm_(optimizer.params.values(), 1.0)
    parameter.grad[...] = 10
    optimizer.step()
    np.testing.assert_allclose(parameter.data, -0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: sn.clip_grad_norm_(p, 0.0), "clip_grad_norm_: max_norm must be above 0, got 0.0"),
        (lambda p: sn.clip_grad_norm_(p, math.nan), "max_norm must be above 0, got nan"),
        (lambda p: sn.clip_grad_norm_(p, 1.0, -2), "clip_grad_norm_: norm_type must be above 0, got -2"),
        (lambda p: sn.clip_grad_value_(p, -1), "clip_grad_value_: clip_value must be at least 0, got -1"),
    ],
)
def test_what_is_out_of_range_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(make())


@pytest.mark.skipif(not has_compiler(), reason="g++ is not installed")
@pytest.mark.parametrize("norm_type", [2.0, 3.0, math.inf])
@pytest.mark.parametrize("frozen", [False, True])
def test_on_a_gpu_nothing_waits(standin, norm_type, frozen):
    rng = np.random.default_rng(0)
    model = sn.Sequential(sn.Conv2d(3, 5, 1, rng=rng), sn.Flatten(), sn.Linear(20, 2, rng=rng)).to("cuda")
    sn.SGD(model.named_parameters(), lr=0.1)  # lays them side by side
    model[0].requires_grad_(not frozen)
    for p in model.parameters():
        p.grad[...] = to_device(rng.standard_normal(p.data.shape).astype(np.float32), "cuda")
    host = [sn.Parameter(np.zeros(p.data.shape, np.float32), p.requires_grad) for p in model.parameters()]
    for p, other in zip(host, model.parameters(), strict=True):
        p.grad[...] = other.grad.get()
    standin.counts.clear()
    total = sn.clip_grad_norm_(model.parameters(), 0.5, norm_type)
    sn.clip_grad_value_(model.parameters(), 0.2)
    assert not standin.counts["to host"]
    want = sn.clip_grad_norm_(host, 0.5, norm_type)
    sn.clip_grad_value_(host, 0.2)
    assert total.shape == ()
    np.testing.assert_allclose(total.get(), want, rtol=1e-6)
    for p, other in zip(host, model.parameters(), strict=True):
        np.testing.assert_allclose(other.grad.get(), p.grad, rtol=1e-5)
