"""MobileNetV2 end to end: its gradient against the complex step, and what `python -m scratchnet.gradcheck` prints."""

import numpy as np
import pytest

import scratchnet as sn
from models import MobileNetV2
from scratchnet.gradcheck import __main__ as command

VARIANTS = [("cifar", (3, 3, 12, 16)), ("imagenet", (5, 3, 64, 48)), ("blog", (5, 3, 64, 48))]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("variant", "shape"), VARIANTS)
def test_gradients_of_the_whole_network_equal_the_complex_step(variant, shape, mode):
    """Two elements of every array, more than 300 in all, at 1e-11; the adjoint test, which takes all, at 1e-10."""
    rng = np.random.default_rng(5)
    network = MobileNetV2(7, 0.25, variant, dtype=np.float64, rng=rng)
    network(rng.standard_normal(shape))  # running statistics that are not 0 and 1
    network.train() if mode == "train" else network.eval()
    report = sn.gradcheck(network, rng.standard_normal(shape), rng=rng, rtol=1e-11, samples=2)
    assert sum(row.checked for row in report.rows[:-1]) > 300
    assert report.rows[-1].name == "adjoint test" and report.rows[-1].error <= 1e-10


def test_the_command_checks_every_layer_of_the_library():
    names = " ".join(name for name, *_ in command.catalogue(np.random.default_rng(0)))
    layers = [name for name, value in vars(sn).items() if isinstance(value, type) and issubclass(value, sn.Module)]
    missing = [name for name in layers if name not in names]
    losses = {"CrossEntropyLoss", "MSELoss", "L1Loss", "BCEWithLogitsLoss"}  # as their functions
    assert set(missing) == {"Module", "Sequential"} | losses  # and as MobileNetV2


def test_the_command_prints_a_line_a_check_and_fails_for_a_wrong_gradient(monkeypatch, capsys):
    class Wrong(sn.ReLU):
        def backward(self, dy):
            return 2 * super().backward(dy)

    x = np.random.default_rng(0).uniform(1, 2, (2, 3, 4, 5))
    monkeypatch.setattr(command, "catalogue", lambda rng: [("right", sn.ReLU(), x, True, {})])
    assert command.main() == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in out[1:3]] == [["right", "train"], ["right", "eval"]]
    assert out[-1].startswith("2 checks, 240 elements") and "0 wrong" in out[-1]
    monkeypatch.setattr(command, "catalogue", lambda rng: [("wrong", Wrong(), x, False, {})])
    assert command.main() == 1
    out = capsys.readouterr().out
    assert "WRONG: Wrong: the gradient of x" in out and "1 wrong" in out
