"""What PyTorch users type: taken where it changes nothing, one sentence where it is not had, Python's error otherwise."""

import inspect

import numpy as np
import pytest

import scratchnet as sn

TAKEN = [
    lambda: sn.ReLU(inplace=True),
    lambda: sn.ReLU(True),
    lambda: sn.ReLU(inplace=False),
    lambda: sn.ReLU6(inplace=True),
    lambda: sn.SiLU(inplace=True),
    lambda: sn.Hardswish(inplace=True),
    lambda: sn.Hardsigmoid(True),
    lambda: sn.LeakyReLU(0.2, True),
    lambda: sn.LeakyReLU(0.2, inplace=True),
    lambda: sn.Dropout(0.5, inplace=True),
    lambda: sn.Dropout(0.5, True),
    lambda: sn.Dropout(),
    lambda: sn.GELU(approximate="none"),
    lambda: sn.Softmax(dim=1),
    lambda: sn.Conv2d(4, 4, 3, 1, 1, padding_mode="zeros", device=None),
    lambda: sn.Conv2d(4, 4, 3, padding="same", device="cpu"),
    lambda: sn.BatchNorm2d(4, affine=True, track_running_stats=True, device=None),
    lambda: sn.Flatten(1),
    lambda: sn.Flatten(start_dim=1, end_dim=-1),
    lambda: sn.Identity(4, 5, bias=True),
]


@pytest.mark.parametrize("make", TAKEN, ids=lambda make: inspect.getsource(make).strip().strip(",")[8:])
def test_is_taken(make):
    """And works: the gradient is right."""
    x = np.random.default_rng(0).uniform(0.5, 1.5, (2, 4, 3, 5))
    sn.gradcheck(make(), x)


@pytest.mark.parametrize("layer", [sn.ReLU, sn.ReLU6, sn.SiLU, sn.Hardswish, sn.Hardsigmoid, sn.LeakyReLU])
def test_inplace_writes_into_nothing(layer):
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 5))
    before, plain, inplace = x.copy(), layer(), layer(inplace=True)
    y = inplace(x)
    assert np.array_equal(x, before) and y is not x and np.array_equal(y, plain(x))


CUDA = r"layers are made on the CPU: move the whole network with model.to\('cuda'\)"
REDUCE = "PyTorch gave it up too: say reduction='mean' or reduction='sum'"
REFUSED = [
    (
        lambda: sn.Conv2d(4, 4, 3, padding_mode="reflect"),
        "Conv2d: padding_mode='reflect' is not offered: pad x before, ",
    ),
    (lambda: sn.Conv2d(4, 4, 3, device="cuda"), f"Conv2d: device='cuda' is not offered: {CUDA}$"),
    (lambda: sn.Linear(4, 4, device="cuda:0"), f"Linear: device='cuda:0' is not offered: {CUDA}$"),
    (lambda: sn.BatchNorm2d(4, device="cuda"), f"BatchNorm2d: device='cuda' is not offered: {CUDA}$"),
    (lambda: sn.BatchNorm2d(4, affine=False), "BatchNorm2d: affine=False is not offered: weight is 1 and bias 0 at fi"),
    (
        lambda: sn.BatchNorm2d(4, track_running_stats=False),
        r"BatchNorm2d: track_running_stats=False is not offered: eval\(\) normalises by the running statistics",
    ),
    (lambda: sn.Flatten(start_dim=2), "Flatten: start_dim=2 is not offered: only all axes behind the batch's become o"),
    (lambda: sn.Flatten(0), "Flatten: start_dim=0 is not offered"),
    (lambda: sn.Flatten(1, 2), "Flatten: end_dim=2 is not offered"),
    (lambda: sn.GELU(approximate="tanh"), "GELU: approximate='tanh' is not offered: tanh was a faster way to nearly "),
    (lambda: sn.MSELoss(size_average=False), f"MSELoss: size_average=False is not offered: {REDUCE}$"),
    (lambda: sn.L1Loss(reduce=False), f"L1Loss: reduce=False is not offered: {REDUCE}$"),
    (lambda: sn.BCEWithLogitsLoss(reduce=False), f"BCEWithLogitsLoss: reduce=False is not offered: {REDUCE}$"),
    (
        lambda: sn.CrossEntropyLoss(size_average=False),
        f"CrossEntropyLoss: size_average=False is not offered: {REDUCE}$",
    ),
    (
        lambda: sn.BCEWithLogitsLoss(weight=np.ones(3)),
        r"BCEWithLogitsLoss: weight=array\(.*\) is not offered: multiply what backward\(\) returns by it",
    ),
    (
        lambda: sn.Conv2d(4, 4, 3, stride=2, padding="same"),
        r"Conv2d: padding 'same' needs stride 1, got stride \(2, 2\): say how many pixels$",
    ),
    (
        lambda: sn.Conv2d(4, 4, (3, 2), padding="same"),
        r"Conv2d: padding 'same' would need different padding on the two sides, for kernel_size \(3, 2\) and dilation "
        r"\(1, 1\): pad x before, with np.pad, and convolve with padding=0$",
    ),
    (
        lambda: sn.Conv2d(4, 4, 3, padding="full"),
        "Conv2d: padding must be an int of at least 0 or a pair of them, got 'f",
    ),
]


@pytest.mark.parametrize(
    ("make", "said"), REFUSED, ids=[said.split(": ")[0] + str(k) for k, (_, said) in enumerate(REFUSED)]
)
def test_is_answered_by_one_sentence(make, said):
    with pytest.raises(ValueError, match=f"^{said}") as caught:
        make()
    assert "\n" not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize("layer", [sn.ReLU, sn.LeakyReLU, sn.Hardswish, sn.Dropout])
@pytest.mark.parametrize("inplace", [0.2, 1, None, "yes"])
def test_an_inplace_that_was_meant_otherwise_is_named(layer, inplace):
    said = (
        rf"^{layer.__name__}: inplace must be True or False \(it is accepted, and changes nothing\), got {inplace!r}$"
    )
    with pytest.raises(TypeError, match=said):
        layer(inplace=inplace)


MAKERS = {sn.Conv2d: (4, 4, 3), sn.Linear: (4, 4), sn.BatchNorm2d: (4,), sn.CrossEntropyLoss: (), sn.MSELoss: ()}


@pytest.mark.parametrize("layer", [*MAKERS, sn.ReLU, sn.Flatten, sn.GELU, sn.L1Loss], ids=lambda layer: layer.__name__)
def test_a_name_that_nobody_knows_is_pythons_error_and_the_signature_is_ours(layer):
    with pytest.raises(TypeError, match=r"__init__\(\) got an unexpected keyword argument 'paddding'$"):
        layer(*MAKERS.get(layer, ()), paddding=1)
    assert not {"device", "padding_mode", "reduce", "options"} & set(inspect.signature(layer).parameters)


def test_a_missing_argument_is_pythons_error_too():
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'kernel_size'"):
        sn.Conv2d(3, 4, device=None)


@pytest.mark.parametrize("kernel", [1, 3, (5, 3), (1, 7)])
@pytest.mark.parametrize("dilation", [1, 2, (2, 3)])
def test_padding_same_gives_y_the_size_of_x_and_pytorchs_values(torch, kernel, dilation):
    rng = np.random.default_rng(0)
    layer = sn.Conv2d(3, 4, kernel, padding="same", dilation=dilation, dtype=np.float64, rng=rng)
    x = rng.standard_normal((2, 3, 9, 11))
    y = layer(x)
    assert y.shape == (2, 4, 9, 11) and "padding" in repr(layer) or layer.padding == (0, 0)
    weight, bias = (torch.from_numpy(parameter.data) for parameter in (layer.weight, layer.bias))
    want = torch.nn.functional.conv2d(torch.from_numpy(x), weight, bias, padding="same", dilation=dilation)
    np.testing.assert_allclose(y, want.numpy(), rtol=0, atol=1e-12)
    assert sn.Conv2d(3, 4, kernel, padding="valid", dilation=dilation).padding == (0, 0)


def test_an_even_kernel_that_dilation_makes_odd_has_the_same_on_both_sides():
    layer = sn.Conv2d(3, 4, 2, padding="same", dilation=2)
    assert layer.padding == (1, 1) and layer(np.ones((1, 3, 5, 6), np.float32)).shape == (1, 4, 5, 6)
