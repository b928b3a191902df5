"""MobileNetV2 against PyTorch in float64: equal weights give equal logits, loss, gradients and running statistics."""

import numpy as np
import pytest

import scratchnet as sn
from models import MobileNetV2

torch = pytest.importorskip("torch")
from benchmarks.torch_mobilenetv2 import TorchMobileNetV2  # noqa: E402 (needs torch)

CASES = [("cifar", 0.25, 10, 20), ("imagenet", 0.35, 7, 36), ("blog", 0.5, 10, 38)]


def pair(variant, width, classes, seed=3):
    """Ours and PyTorch's network with the same random weights and statistics, dropout off."""
    rng = np.random.default_rng(seed)
    ours = MobileNetV2(classes, width, variant, dropout=0.0, dtype=np.float64, rng=rng)
    for name, value in ours.state_dict().items():
        if "running" in name or name.endswith(("bias", ".1.weight", ".2.weight", ".3.weight")):
            value += rng.uniform(0.1, 0.5, value.shape)
    peer = TorchMobileNetV2(classes, width, variant, dropout=0.0).double()
    peer.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in ours.state_dict().items()})
    return ours, peer, rng


@pytest.mark.parametrize(("variant", "width", "classes", "size"), CASES)
def test_keys_and_shapes_are_those_of_torchvision(variant, width, classes, size):
    ours, peer, _ = pair(variant, width, classes)
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [(k, v.shape) for k, v in peer.state_dict().items()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("variant", "width", "classes", "size"), CASES)
def test_logits_loss_gradients_and_statistics_equal_pytorch(variant, width, classes, size, training):
    ours, peer, rng = pair(variant, width, classes)
    if training:
        ours.train(), peer.train()
    else:
        ours.eval(save=True), peer.eval()
    x = rng.standard_normal((6, 3, size, size - 4))
    labels = rng.integers(0, classes, 6)
    criterion = sn.CrossEntropyLoss(label_smoothing=0.1)

    logits = ours(x)
    loss = criterion(logits, labels)
    dx = ours.backward(criterion.backward())
    xt = torch.from_numpy(x).requires_grad_()
    logits_t = peer(xt)
    loss_t = torch.nn.functional.cross_entropy(logits_t, torch.from_numpy(labels), label_smoothing=0.1)
    loss_t.backward()

    close(logits, logits_t.detach().numpy(), "logits")
    close(loss, loss_t.detach().numpy(), "loss")
    close(dx, xt.grad.numpy(), "dx")
    gradients = {name: p.grad.numpy() for name, p in peer.named_parameters()}
    largest = max(np.abs(g).max() for g in gradients.values())
    for (
        name,
        parameter,
    ) in ours.named_parameters():  # a bias in front of batch norm has gradient 0: judge it by the rest
        close(parameter.grad, gradients[name], name, floor=1e-3 * largest)
    for name, value in ours.state_dict().items():
        close(value, peer.state_dict()[name].numpy(), name)


def close(ours, theirs, what, floor=0.0):
    scale = max(np.abs(theirs).max(), floor)
    assert np.abs(ours - theirs).max() <= 1e-9 * scale, f"{what}: {np.abs(ours - theirs).max() / scale:.1e}"
