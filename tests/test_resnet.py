"""ResNets and U-Net: equal to PyTorch, logits, loss, gradients and running statistics; names and files; the program."""

import json
import tracemalloc

import numpy as np
import pytest
from device import on_a_few_shapes, on_the_host
from hostmodule import has_compiler
from snippets import block_with
from strategies import normal

import scratchnet as sn
from models import MobileNetV2, ResNet, UNet, resnet
from scratchnet.array import to_device
from scratchnet.models import from_checkpoint
from scratchnet.program.flags import MODELS, parse
from scratchnet.training import checkpoint
from scratchnet.training.archive import CheckpointError
from scratchnet.training.recorded import RecordedStep
from scratchnet.training.step import train_step

# PyTorch's -----------------------------------------------------------------------------------------------------------


def torch_unet(torch, ins, outs, channels, levels):
    nn = torch.nn

    def double(a, b):
        return nn.Sequential(
            nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
            nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
        )  # fmt: skip

    class Level(nn.Module):
        def __init__(self, c, levels):
            super().__init__()
            self.joined, below = nn.Module(), nn.Module()
            self.joined.below, below.down = below, double(c, 2 * c)
            below.level = Level(2 * c, levels - 1) if levels > 1 else None
            below.up = nn.ConvTranspose2d(2 * c, c, 2, 2)
            self.convs = double(2 * c, c)

        def forward(self, x):
            below = self.joined.below
            y = below.down(nn.functional.max_pool2d(x, 2))
            y = y if below.level is None else below.level(y)
            return self.convs(torch.cat([x, below.up(y)], 1))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.level = double(ins, channels), Level(channels, levels)
            self.last = nn.Conv2d(channels, outs, 1)

        def forward(self, x):
            return self.last(self.level(self.first(x)))

    return Net().double()


def held_to_torch(torch, ours, theirs, shape):
    """One step in float64 from the same drawn state: everything to 1e-9 of each array's largest number."""
    rng = np.random.default_rng(3)
    for name, value in ours.state_dict().items():
        if "tracked" not in name:
            value[...] = rng.uniform(0.5, 1.5, value.shape) if value.ndim == 1 else rng.normal(0, 0.3, value.shape)
    state = {key: torch.tensor(value) for key, value in ours.state_dict().items()}
    assert set(state) == set(theirs.state_dict())
    theirs.load_state_dict(state)
    x = normal(rng, shape)
    for mode in (True, False):
        ours.train(mode) if mode else ours.eval(save=True)
        theirs.train(mode)
        ours.zero_grad(), theirs.zero_grad()
        seen = torch.tensor(x, requires_grad=True)
        y, want = ours(x), theirs(seen)
        dy = normal(rng, y.shape)
        dx = ours.backward(dy)
        want.backward(torch.tensor(dy))
        pairs = {"y": (y, want), "dx": (dx, seen.grad)}
        pairs |= {name: (p.grad, dict(theirs.named_parameters())[name].grad) for name, p in ours.named_parameters()}
        pairs |= {name: (value, theirs.state_dict()[name]) for name, value in ours.state_dict().items()}
        for name, (got, right) in pairs.items():
            right = right.detach().numpy()
            floor = max(np.abs(right).max(), 1e-6)
            assert np.abs(got - right).max() <= 1e-9 * floor, (name, mode)


@pytest.mark.parametrize(
    ("depth", "width", "side"), [(18, 0.07, 65), (34, 0.04, 64), (50, 0.05, 64), (20, 0.3, 17), (32, 0.2, 16)]
)
def test_a_resnet_is_pytorchs(depth, width, side):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_resnet import TorchResNet

    ours = ResNet(depth, 7, width, dtype=np.float64, rng=np.random.default_rng(0))
    held_to_torch(torch, ours, TorchResNet(resnet.DEPTHS[depth], 7, width).double(), (3, 3, side, side + 2))


def test_a_unet_is_pytorchs():
    torch = pytest.importorskip("torch")
    ours = UNet(3, 2, 4, 2, dtype=np.float64, rng=np.random.default_rng(0))
    held_to_torch(torch, ours, torch_unet(torch, 3, 2, 4, 2), (3, 3, 8, 12))


# Ours ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda **f64: ResNet(20, 5, 0.25, **f64), (3, 3, 8, 12)),
        (lambda **f64: ResNet(50, 5, 0.05, **f64), (3, 3, 32, 40)),
        (lambda **f64: UNet(3, 2, 3, 2, **f64), (3, 3, 8, 12)),
    ],
    ids=["ResNet-20", "ResNet-50", "U-Net"],
)
def test_gradients_equal_the_complex_step(make, shape, mode):
    rng = np.random.default_rng(5)
    network = make(dtype=np.float64, rng=rng)
    network(rng.standard_normal(shape))
    network.train() if mode == "train" else network.eval()
    report = sn.gradcheck(network, rng.standard_normal(shape), rng=rng, rtol=1e-10, samples=1)
    assert report.rows[-1].name == "adjoint test" and report.rows[-1].error <= 1e-9


def test_numbers_of_parameters_are_torchvisions_and_the_papers():
    counts = {18: 11_689_512, 50: 25_557_032}
    for depth, count in counts.items():
        assert ResNet(depth).num_parameters() == count
    assert ResNet(20, 10).num_parameters() == 272_474  # the paper's 0.27 million, and 2,752 of shortcuts


def test_folding_plan_and_the_first_state_of_shortcuts():
    rng = np.random.default_rng(1)
    network = ResNet(20, 10, 0.5, zero_init_residual=True, rng=rng)
    zero = [
        name for name, p in network.named_parameters() if p.data.ndim == 1 and not p.data.any() and "weight" in name
    ]
    assert zero == [f"layer{k}.{b}.bn2.weight" for k in (1, 2, 3) for b in range(3)]
    x = normal(rng, (2, 3, 16, 16)).astype(np.float32)
    for _ in range(3):
        network(x)
    want = network.eval()(x)
    folded = network.fold_batch_norm()
    assert not any(isinstance(module, sn.BatchNorm2d) for _, module in folded.named_modules())
    np.testing.assert_allclose(folded(x), want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert str(sn.plan(network)).count("Residual") == 9 * 2 + 2  # both ends of each, and two turns


@pytest.mark.parametrize("name", ["net.npz", "net.safetensors"])
@pytest.mark.parametrize(("depth", "width"), [(20, 1.0), (32, 0.3), (18, 0.1), (50, 0.07)])
def test_a_file_says_which_resnet_it_holds(depth, width, name, tmp_path):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    network = ResNet(depth, 7, width, rng=np.random.default_rng(2))
    sn.save(tmp_path / name, network)
    for again in (ResNet.from_checkpoint(tmp_path / name), from_checkpoint(tmp_path / name)):
        assert type(again) is ResNet and (again.depth, again.num_classes) == (depth, 7) and not again.training
        for key, value in network.state_dict().items():
            np.testing.assert_array_equal(again.state_dict()[key], value)
    with pytest.raises(CheckpointError, match="holds no such network"):
        MobileNetV2.from_checkpoint(tmp_path / name)


def test_what_is_no_resnet_is_refused(tmp_path):
    sn.save(tmp_path / "m.npz", MobileNetV2(10, 0.1))
    with pytest.raises(CheckpointError, match=r"m\.npz holds no such network: it holds a MobileNetV2, no ResNet"):
        ResNet.from_checkpoint(tmp_path / "m.npz")
    state = ResNet(20, 7, 0.2).state_dict()
    for change, message in (
        ({"fc.weight": np.zeros((7, 99), np.float32)}, r"its arrays do not have the sizes of a ResNet$"),
        ({"layer3.3.conv2.weight": np.zeros((2, 2, 3, 3), np.float32)}, r"it has \[3, 3, 4, 0\] blocks"),
    ):
        sn.save(tmp_path / "r.npz", state | change)
        with pytest.raises(CheckpointError, match=message):
            ResNet.from_checkpoint(tmp_path / "r.npz")
    for depth in (19, 0, "50"):
        with pytest.raises(ValueError, match="ResNet: depth must be one of 18, 34, 50, 101, 20, 32, 44, 56, got"):
            ResNet(depth)
    with pytest.raises(ValueError, match="UNet: levels must be at least 1, got 0"):
        UNet(levels=0)


@pytest.mark.parametrize("header", [True, False])
def test_a_unet_is_built_again_from_its_file(header, tmp_path):
    network = UNet(2, 3, 4, 3, rng=np.random.default_rng(2))
    sn.save(tmp_path / "u.npz", network if header else network.state_dict())
    for again in (UNet.from_checkpoint(tmp_path / "u.npz"), from_checkpoint(tmp_path / "u.npz")):
        assert type(again) is UNet and again.config() == network.config() and not again.training
        for key, value in network.state_dict().items():
            np.testing.assert_array_equal(again.state_dict()[key], value)
    with pytest.raises(
        ValueError, match=r"Concat: branch below gives shape \(1, 16, 6, 4\), branch skip \(1, 16, 6, 5\)"
    ):
        network(np.zeros((1, 2, 24, 20), np.float32))


def test_a_header_or_a_stem_that_claims_more_than_the_file_holds_takes_no_memory(tmp_path):
    path, network = tmp_path / "r.npz", ResNet(20, 7, 0.2)
    arrays = {f"model/{key}": value for key, value in network.state_dict().items()}
    named = {"network": {"name": "ResNet", "arguments": network.config() | {"width_mult": 90}}}
    run = {"config": {"model": "resnet20", "width": 90}}
    wide = {
        "model/conv1.weight": np.zeros((4000, 3, 3, 3), np.float32),
        "model/fc.weight": np.zeros((7, 16000), np.float32),
    }
    for header, changed in ((named, {}), (run, {}), ({}, wide)):
        checkpoint.save(path, arrays | changed, header)
        tracemalloc.start()
        with pytest.raises(
            CheckpointError, match=r"r\.npz holds no such network: its arrays do not have the sizes of a ResNet"
        ):
            ResNet.from_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**23
    checkpoint.save(path, arrays, {"config": {"model": "resnet20", "width": 0.2}})
    assert from_checkpoint(path).config() == network.config()
    with pytest.raises(CheckpointError, match="it holds a resnet20, no MobileNetV2"):
        MobileNetV2.from_checkpoint(path)
    sn.save(path, {"a": np.ones(3)})
    with pytest.raises(
        CheckpointError, match="sizes of a MobileNetV2 .*; it has no .* of a ResNet; it has no .* of a UNet"
    ):
        from_checkpoint(path)


@pytest.mark.skipif(not has_compiler(), reason="g++ is not installed")
def test_a_recorded_step_of_a_resnet_has_the_bits_of_eager_ones(gemm, standin):
    ends = []
    for record in (False, True):
        rng = np.random.default_rng(4)
        network = ResNet(20, 5, 0.25, rng=rng).to("cuda")
        optimizer, criterion = sn.SGD(network.named_parameters(), lr=0.05, momentum=0.9), sn.CrossEntropyLoss()
        half = RecordedStep(network, criterion)
        for _ in range(3):
            x, labels = (
                to_device(normal(rng, (4, 3, 8, 8), np.float32), "cuda"),
                to_device(rng.integers(0, 5, 4), "cuda"),
            )
            if record:
                half(x, labels)
                optimizer.step()
            else:
                train_step(network, criterion, optimizer, x, labels)
        assert half.why_not is None
        ends.append(on_the_host(network.state_dict()))
    assert all(ends[0][key].tobytes() == value.tobytes() for key, value in ends[1].items())
    assert standin.counts["graph"] == 2


def test_a_unet_learns_where_a_square_is():
    rng = np.random.default_rng(0)
    network, criterion = UNet(1, 1, 4, 2, rng=rng), sn.BCEWithLogitsLoss()
    optimizer = sn.Adam(network.parameters(), 0.02)

    def batch():
        target = np.zeros((8, 1, 16, 16), np.float32)
        for picture, (top, left) in zip(target, rng.integers(0, 10, (8, 2)), strict=True):
            picture[:, top : top + 6, left : left + 6] = 1
        return target + 0.5 * normal(rng, target.shape, np.float32), target

    for _ in range(40):
        train_step(network, criterion, optimizer, *batch())
    x, target = batch()
    assert ((network.eval()(x) > 0) == target).mean() > 0.97  # to say "nowhere" is right at 0.86 of the pixels


def test_the_networks_that_the_guide_shows_have_the_shapes_that_it_says():
    names = {}
    exec(block_with("UNet("), names)
    assert names["logits"].shape == names["deeper"].shape == (8, 10) and names["masks"].shape == (8, 1, 32, 32)


# The program -----------------------------------------------------------------------------------------------------------


def test_a_resnet_has_its_own_width_unless_another_is_given():
    assert parse(["--model", "resnet34"], "").width == parse(["--preset", "resnet20"], "").width == 1.0
    assert parse(["--model", "resnet34", "--width", "0.5"], "").width == parse([], "").width == 0.5


def test_every_depth_can_be_asked_for():
    assert sorted(MODELS[1:]) == sorted(f"resnet{depth}" for depth in resnet.DEPTHS)


def test_the_program_trains_goes_on_with_and_tests_a_resnet(tmp_path, capsys):
    out = tmp_path / "run"
    flags = (
        "--model",
        "resnet20",
        "--width",
        "0.2",
        "--batch-size",
        "6",
        "--lr",
        "1e-3",
        "--ranks",
        "1",
        "--out",
        str(out),
    )
    assert on_a_few_shapes(*flags, "--epochs", "2") == 0
    said = capsys.readouterr().out
    assert "network   ResNet-20, width 0.2" in said and "MobileNetV2" not in said
    config = json.loads((out / "config.json").read_text())
    assert config["model"] == "resnet20" and config["title"].startswith("ResNet-20, width 0.2, on ")
    assert on_a_few_shapes("--eval", str(out / "best.npz"), "--ranks", "1") == 0
    assert on_a_few_shapes(*flags, "--epochs", "2", "--resume") == 0
    network = from_checkpoint(out / "best.npz")
    assert (network.depth, network.num_classes) == (20, 10)
    for idle in (("--variant", "blog"), ("--dropout", "0.3")):
        assert on_a_few_shapes(*flags, *idle) == 2
        assert f"{idle[0]} does nothing with --model resnet20" in capsys.readouterr().err
