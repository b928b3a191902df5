"""Weights from elsewhere and ImageNet's pictures: equal to PyTorch's and torchvision's, where these are installed."""

import os
import re
import warnings

import numpy as np
import pytest

import scratchnet as sn
import train_cifar
from models import MobileNetV2, ResNet
from scratchnet.data import imagenet, pictures
from scratchnet.training.archive import CheckpointError

image = pytest.importorskip("PIL.Image")
SIZES = [(256, 256), (300, 500), (500, 300), (224, 224), (257, 601), (100, 80), (1000, 33), (255, 256)]  # height, width
PRETRAINED = os.environ.get("SCRATCHNET_PRETRAINED")  # torchvision's mobilenet_v2-b0353104.pth, where somebody has it


def picture(path, size, seed=0):
    """A smooth picture and a noisy one in one file."""
    rng = np.random.default_rng(seed)
    coarse = image.fromarray(rng.integers(0, 256, (5, 4, 3), np.uint8)).resize(size[::-1], 3)
    noise = rng.integers(-40, 40, (*size, 3))
    image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def torchvision():
    """The package; where it is made for another build of PyTorch, without the operators that detection needs."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torchvision
        except ImportError:
            pytest.skip("torchvision is not installed")
        except RuntimeError:  # operator torchvision::nms does not exist
            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            import torchvision
    return torchvision


def test_the_classes_are_imagenets():
    assert len(imagenet.CLASSES) == len(set(imagenet.CLASSES)) == 1000
    places = {"tench": 0, "goldfish": 1, "Egyptian cat": 285, "espresso": 967, "toilet tissue": 999}
    assert all(imagenet.CLASSES[place] == name for name, place in places.items())
    assert all(name == name.strip() and name.isascii() for name in imagenet.CLASSES)


@pytest.mark.parametrize(
    ("size", "resized", "left", "top"),
    [
        ((256, 256), (256, 256), 16, 16), ((600, 300), (512, 256), 144, 16), ((300, 600), (256, 512), 16, 144),
        ((257, 601), (256, 598), 16, 187), ((100, 80), (320, 256), 48, 16), ((255, 256), (256, 257), 16, 16),
    ],
)  # fmt: skip
def test_the_shorter_side_becomes_256_and_the_middle_is_cut_out(size, resized, left, top):
    calls = []

    class Picture:
        def __init__(self, size):
            self.size = size

        def resize(self, size, way):
            calls.append((size, way))
            return self

        def crop(self, box):
            calls.append(box)
            return self

    imagenet.resize_and_crop(Picture(size), 224)
    assert calls == [(resized, image.Resampling.BILINEAR), (left, top, left + 224, top + 224)]


def test_numbers_are_normalised_channel_by_channel():
    pixels = np.zeros((2, 3, 1, 2), np.uint8)
    pixels[1] = 255
    x = imagenet.normalise(pixels)
    assert x.dtype == np.float32 and x.shape == pixels.shape
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        assert np.allclose(x[0, channel], -mean / std, rtol=1e-6) and np.allclose(
            x[1, channel], (1 - mean) / std, rtol=1e-6
        )


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_has_torchvisions_bits(size, torchvision, tmp_path):
    path = picture(tmp_path / "a.png", size)
    transform = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    theirs = transform(image.open(path).convert("RGB"))[None].numpy()
    assert np.array_equal(imagenet.read_image(path), theirs)
    image.open(path).save(tmp_path / "a.jpg")
    theirs = transform(image.open(tmp_path / "a.jpg").convert("RGB"))[None].numpy()
    assert np.array_equal(imagenet.read_image(tmp_path / "a.jpg"), theirs)


def test_the_names_are_torchvisions(torchvision):
    assert list(imagenet.CLASSES) == torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]


def drawn(torch, network, seed=0):
    """Weights and statistics of a trained network's kind, so that logits are neither tiny nor equal."""
    generator = torch.Generator().manual_seed(seed)
    for value in network.state_dict().values():
        if value.dtype.is_floating_point and value.ndim == 1:
            value += torch.empty(value.shape).uniform_(0.05, 0.3, generator=generator)
    return network.eval()


@pytest.mark.parametrize("new", [True, False])
def test_a_file_of_pytorchs_gives_its_logits(torch, new, tmp_path):
    from benchmarks.torch_mobilenetv2 import TorchMobileNetV2

    peer = drawn(torch, TorchMobileNetV2(1000, 0.35, "imagenet"))
    torch.save(peer.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    model = MobileNetV2(1000, 0.35, "imagenet")
    assert model.load_state_dict(sn.load(tmp_path / "a.pth")) == ([], [])
    assert MobileNetV2.from_checkpoint(tmp_path / "a.pth").config()["width_mult"] == 0.35
    x = imagenet.read_image(picture(tmp_path / "a.png", (300, 500)))
    with torch.no_grad():
        theirs = peer(torch.from_numpy(x)).numpy()
    assert np.abs(model.eval()(x) - theirs).max() <= 1e-5 * np.abs(theirs).max() and np.ptp(theirs) > 0.1


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_torchvisions_network_gives_its_logits_from_file_and_picture(torchvision, width, tmp_path):
    import torch

    torch.manual_seed(0)
    peer = drawn(torch, torchvision.models.mobilenet_v2(width_mult=width))
    torch.save({"model": peer.state_dict(), "epoch": 3}, tmp_path / "a.pth")
    same_logits(torch, torchvision, peer, tmp_path / "a.pth", picture(tmp_path / "a.png", (301, 401)))


@pytest.mark.skipif(
    not PRETRAINED, reason="SCRATCHNET_PRETRAINED does not name torchvision's mobilenet_v2-b0353104.pth"
)
def test_torchvisions_pretrained_weights_give_its_logits(torchvision, tmp_path):
    import torch

    peer = torchvision.models.mobilenet_v2()
    peer.load_state_dict(torch.load(PRETRAINED, weights_only=True))
    for seed, size in enumerate(SIZES):
        same_logits(torch, torchvision, peer.eval(), PRETRAINED, picture(tmp_path / "a.png", size, seed))


def same_logits(torch, torchvision, peer, file, path):
    model = MobileNetV2.from_checkpoint(file)
    transform = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    with torch.no_grad():
        theirs = peer(transform(image.open(path).convert("RGB"))[None]).numpy()
    ours = model(imagenet.read_image(path))
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max() and np.ptp(theirs) > 0.1


# The program -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pth"])
def test_predict_names_imagenets_classes(kind, tmp_path, capsys):
    model = MobileNetV2(1000, 0.1, "imagenet")
    model.classifier[1].bias.data[[285, 967, 0]] = 9, 8, 7
    file = tmp_path / f"a.{kind}"
    if kind == "pth":
        from torch_files import members, tensors, zipped

        file.write_bytes(zipped(members(*tensors(model.state_dict()))))
    else:
        pytest.importorskip("safetensors" if kind == "safetensors" else "PIL")
        sn.save(file, model)
    path = picture(tmp_path / "a.png", (60, 80))
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert train_cifar.main(["--predict", str(file), str(path), str(tmp_path / "b.png")]) == 2
    out, error = capsys.readouterr()
    assert re.fullmatch(rf"{re.escape(str(path))}: Egyptian cat ([\d.]+) %, espresso [\d.]+ %, tench [\d.]+ %\n", out)
    assert "b.png cannot be read" in error and error.count("\n") == 1


@pytest.mark.parametrize(("depth", "classes", "known"), [(18, 1000, True), (20, 1000, False), (18, 10, False)])
def test_a_resnet_for_imagenet_predicts_its_classes_from_torchvisions_keys_alone(
    depth, classes, known, tmp_path, capsys
):
    model = ResNet(depth, classes, 1 / 16)
    model.fc.weight.data[...] = 0
    model.fc.bias.data[...] = np.arange(classes) == min(285, classes - 1)
    sn.save(tmp_path / "a.npz", model.state_dict())
    path = picture(tmp_path / "a.png", (260, 240))
    assert train_cifar.main(["--predict", str(tmp_path / "a.npz"), str(path)]) == (0 if known else 2)
    out, error = capsys.readouterr()
    assert (
        out.startswith(f"{path}: Egyptian cat ") if known else f"a.npz: a ResNet with num_classes {classes}, " in error
    )


@pytest.mark.parametrize(("classes", "variant"), [(10, "imagenet"), (1000, "blog")])
def test_a_network_of_unknown_classes_is_not_guessed_at(classes, variant, tmp_path, capsys):
    sn.save(tmp_path / "a.npz", MobileNetV2(classes, 0.1, variant))
    assert train_cifar.main(["--predict", str(tmp_path / "a.npz"), "a.png"]) == 2
    out, error = capsys.readouterr()
    assert not out and error.count("\n") == 1
    assert (
        f"a.npz: a MobileNetV2 with num_classes {classes}, width_mult 0.1, variant {variant}, dropout 0.2, and" in error
    )


def test_something_else_is_one_line(tmp_path, capsys):
    path = picture(tmp_path / "a.png", (30, 30))
    assert train_cifar.main(["--predict", str(path), str(path)]) == 2
    assert capsys.readouterr().err.endswith("a.png: it is a PNG picture\n")
    with pytest.raises(CheckpointError, match="a.png: it is a PNG picture"):
        sn.load(path)


def test_the_other_pictures_are_made_as_before(tmp_path):
    path = picture(tmp_path / "a.png", (64, 48))
    wanted = np.asarray(image.open(path).crop((0, 8, 48, 56)).resize((32, 32), image.Resampling.BOX)).transpose(2, 0, 1)
    assert np.array_equal(pictures.read_picture(path), wanted)
