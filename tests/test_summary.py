"""The summary: every layer once, sums that are right, in 100 columns."""

import re

import numpy as np
import pytest
from networks import picture, tree

import scratchnet as sn
from models import MobileNetV2
from scratchnet.program import memory
from scratchnet.summary import SHARES, bytes_per_picture


def test_a_row_a_layer_and_the_sums():
    net = tree()
    net.stem.requires_grad_(False)
    before = {name: value.copy() for name, value in net.state_dict().items()}
    text = str(sn.summary(net, picture().shape[1:]))
    assert text == repr(sn.summary(net, picture().shape[1:]))
    assert (
        text
        == """\
layer         kind             output  parameters  multiply-adds
────────────────────────────────────────────────────────────────
stem.0        Conv2d           4×5×4        (112)          2,160
stem.1        ReLU6            4×5×4
block.body.0  Conv2d           4×5×4           36            720
block.body.1  BatchNorm2d      4×5×4            8
block.scale   Scale            4×5×4            4
pool          GlobalAvgPool2d  4×1×1
head.0        Flatten          4
head.1        Dropout          4
head.2        Linear           5               20             20
────────────────────────────────────────────────────────────────
sum                                           180          2,900
68 parameters are trained, 112 frozen (in brackets)
memory of a training step: 2.81 KiB for parameters and gradients, about 1.32 KiB a picture""".replace(
            "1.32 KiB", re.search(r"about (.*) a picture", text).group(1)
        )
    )
    assert all(np.array_equal(net.state_dict()[name], value) for name, value in before.items()) and net.training
    net.stem[0].weight.requires_grad = True
    assert "(112) 108" in str(sn.summary(net, (3, 7, 6)))


@pytest.mark.parametrize("which", [False, "numpy", True])
def test_of_mobilenet(which):
    model = MobileNetV2(10, 0.5, "cifar", rng=np.random.default_rng(0))
    with sn.use_kernels(which):
        found = sn.summary(model, (3, 32, 32))
        assert (
            found.picture_bytes == bytes_per_picture(model, (3, 32, 32)) == memory.bytes_per_picture(model, (3, 32, 32))
        )
    assert found.parameters == found.trained == 700_490 and found.parameter_bytes == 4 * 700_490
    assert found.multiply_adds == sum(step.multiply_adds for step in sn.trace(model, (3, 32, 32))) > 20e6
    lines = str(found).split("\n")
    assert max(map(len, lines)) <= 100 and len(lines) == len(found.layers) + 6
    assert lines[-2] == "700,490 parameters are trained, 0 frozen"


def test_long_names_keep_their_ends_within_100_columns():
    net = sn.Linear(3, 2, dtype=np.float64)
    for k in range(12):
        net = sn.Sequential({f"a_long_name_{k}": net})
    lines = str(sn.summary(net, (3,))).split("\n")
    assert max(map(len, lines)) == 100 and lines[2].startswith("…") and "a_long_name_0  Linear" in lines[2]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (1, 3, 7, 6),
            r"summary: shape is that of one picture, \(C, H, W\), without the batch axis, got \(1, 3, 7, 6\)",
        ),
        ((4, 7, 6), "stem.0 Conv2d: expected 3 input channels"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        sn.summary(tree(), shape)


def test_names_that_users_look_for():
    for name in sn.__all__:
        assert getattr(sn, name) is not None
    assert sn.schedule.cosine(0, 10, 0.5) == 0.5 and callable(sn.train_step) and sn.Trainer.__name__ == "Trainer"
    with pytest.raises(AttributeError, match="module 'scratchnet' has no attribute 'Trayner'"):
        _ = sn.Trayner


def test_layers_that_are_not_fused_take_more_than_those_that_are():
    """As measured: ResNet-20's step takes 0.71 of its outputs, with compiled kernels as with NumPy's."""
    for activation, fused in ((sn.ReLU6(), True), (sn.ReLU(), False)):
        net = sn.Sequential(sn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), sn.BatchNorm2d(8), activation)
        for version in ("numpy", False):
            with sn.use_kernels(version):
                share = SHARES[version if fused else False]
                assert bytes_per_picture(net, (8, 6, 5)) == pytest.approx(share * 4 * 3 * 8 * 6 * 5)
