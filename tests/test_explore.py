"""The explorer: the step that it takes is a training step, and what its page holds is what the arrays are."""

import base64
import copy
import json
import re
import zlib

import numpy as np
import pytest

import scratchnet as sn
from models import MobileNetV2, ResNet, UNet
from scratchnet.explore import check, column, explore, pack, page, small, step, text
from scratchnet.explore.__main__ import main
from scratchnet.explore.subject import read_subject
from scratchnet.training import checkpoint
from scratchnet.weights import read


@pytest.fixture(scope="module")
def network():
    """A small network with a shortcut, a stride, and dropout."""
    rng = np.random.default_rng(1)
    body = {"conv": sn.Conv2d(5, 5, 3, padding=1, rng=rng), "norm": sn.BatchNorm2d(5), "clip": sn.ReLU6()}
    head = {"drop": sn.Dropout(0.3, rng=rng), "linear": sn.Linear(7, 4, rng=rng)}
    return sn.Sequential({
        "stem": sn.Conv2d(3, 5, 3, 2, 1, rng=rng), "block": sn.Residual(body), "wide": sn.Conv2d(5, 7, 1, rng=rng),
        "pool": sn.GlobalAvgPool2d(), "flatten": sn.Flatten(), "head": sn.Sequential(head),
    })  # fmt: skip


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(2)
    return rng.standard_normal((6, 3, 11, 9), dtype=np.float32), rng.integers(0, 4, 6)


@pytest.fixture(scope="module")
def taken(network, batch):
    return step.take_step(network, sn.CrossEntropyLoss(0.1), *batch, lr=0.3)


def number_of(taken, name, place=""):
    return next(
        k
        for k, layer in enumerate(taken.layers)
        if (layer.name, layer.step.place if not layer.is_layer else "") == (name, place)
    )


# The step -------------------------------------------------------------------------------------------------------------


def test_it_is_the_training_step(network, batch, taken):
    twin, criterion = copy.deepcopy(network).train(), sn.CrossEntropyLoss(0.1)
    optimizer = sn.SGD(twin.parameters(), 0.3)
    before = {name: p.data.copy() for name, p in twin.named_parameters()}
    loss, logits = sn.train_step(twin, criterion, optimizer, *batch)
    assert taken.loss == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(taken.logits, logits, rtol=1e-4, atol=1e-5)
    assert taken.changes.keys() == before.keys()
    for name, p in twin.named_parameters():
        change = taken.changes[name]
        assert np.array_equal(change.before, before[name])
        np.testing.assert_allclose(change.gradient, p.grad, rtol=1e-3, atol=1e-5 * max(1e-3, abs(p.grad).max()))
        np.testing.assert_allclose(change.after, p.data, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(change.after, change.before - np.float32(0.3) * change.gradient, rtol=0, atol=1e-7)


def test_after_it_the_loss_is_of_the_new_weights_and_the_same_masks(network, batch, taken):
    again = copy.deepcopy(network).train()
    for name, p in again.named_parameters():
        p.data[...] = taken.changes[name].after
    logits = again(batch[0])
    np.testing.assert_allclose(taken.logits_after, logits, rtol=1e-4, atol=1e-5)
    assert taken.after == pytest.approx(float(sn.CrossEntropyLoss(0.1)(logits, batch[1])), rel=1e-5)
    assert np.mean(taken.losses) == pytest.approx(taken.loss, rel=1e-5)
    assert np.mean(taken.losses_after) == pytest.approx(taken.after, rel=1e-5)
    assert taken.after < taken.loss


def test_the_network_stays_as_it_is(batch):
    rng = np.random.default_rng(3)
    model = sn.Sequential(
        sn.Conv2d(3, 4, 1, rng=rng), sn.BatchNorm2d(4), sn.Dropout(0.5, rng=rng), sn.GlobalAvgPool2d(), sn.Flatten()
    )
    state, drawn = {key: value.copy() for key, value in model.state_dict().items()}, rng.bit_generator.state
    step.take_step(model.eval(), sn.CrossEntropyLoss(), *batch, lr=0.1)
    assert all(np.array_equal(value, state[key]) for key, value in model.state_dict().items())
    assert rng.bit_generator.state == drawn and not model.training
    assert not any(p.grad.any() for p in model.parameters())


def test_what_a_layer_gives_is_what_the_next_one_gets(taken):
    layers = taken.layers
    for one, other in zip(layers, layers[1:], strict=False):
        assert one.y == other.x and one.dy == other.dx
    assert layers[-1].dy == taken.dlogits
    assert taken.arrays[layers[-1].y] is taken.logits
    fork, join = (layers[number_of(taken, "block", place)] for place in ("open", "close"))
    first = layers[number_of(taken, "block.conv")]
    assert fork.x == fork.y == first.x
    f = taken.arrays[join.x]
    np.testing.assert_allclose(taken.arrays[join.y], taken.arrays[fork.x] + f, rtol=1e-6)
    np.testing.assert_allclose(
        taken.arrays[fork.dx], taken.arrays[first.dx] + taken.arrays[join.dy], rtol=1e-5, atol=1e-9
    )


def test_a_number_that_is_not_finite_stops_it(network, batch):
    broken = copy.deepcopy(network)
    broken.wide.bias.data[0] = np.nan
    with pytest.raises(FloatingPointError, match="what wide gives is not finite"):
        step.take_step(broken, sn.CrossEntropyLoss(), *batch, lr=0.1)
    with pytest.raises(FloatingPointError, match="after an update with lr 1e[+]30"):
        step.take_step(network, sn.CrossEntropyLoss(), *batch, lr=1e30)


# Checks ---------------------------------------------------------------------------------------------------------------


def test_each_layer_is_checked_at_what_it_got(network, taken):
    found = check.check_layers(network, taken)
    assert [one is None for one in found] == [
        not layer.is_layer and layer.step.place != "close" for layer in taken.layers
    ]
    for layer, one in zip(taken.layers, found, strict=True):
        if one:
            assert not one.wrong and one.method == "complex-step"
            assert max(error for *_, error in one.rows) <= one.rtol == 1e-12
            names = [name for name, *_ in one.rows]
            assert names == [
                "x",
                *(name for name, _ in layer.step.parameters()),
                *["x1"] * (not layer.is_layer),
                "adjoint test",
            ]
            assert one.rows[0][1] == [2, *taken.arrays[layer.x].shape[1:]]


class Wrong(sn.ReLU):
    def backward(self, dy):
        return 2 * super().backward(dy)


def test_a_wrong_backward_is_shown_as_wrong(batch):
    model = sn.Sequential(
        {"conv": sn.Conv2d(3, 4, 1), "wrong": Wrong(), "pool": sn.GlobalAvgPool2d(), "flatten": sn.Flatten()}
    )
    taken = step.take_step(model, sn.CrossEntropyLoss(), *batch, lr=0.1)
    wrong = {layer.name: one.wrong for layer, one in zip(taken.layers, check.check_layers(model, taken), strict=True)}
    assert "2 times too large" in wrong.pop("wrong")
    assert not any(wrong.values())


class Absolute(sn.Module):
    def forward(self, x):
        self.save_cache(x, x)
        return np.abs(x)

    def backward(self, dy):
        return dy * np.sign(self.take_cache(dy))


def test_a_layer_that_is_not_complex_is_checked_by_differences():
    x = np.random.default_rng(4).uniform(0.5, 2, (2, 3)) * [1, -1, 1]
    assert check.checked(Absolute(), x).method == "finite-difference"
    assert not check.checked(Absolute(), x).wrong


@pytest.mark.parametrize("criterion", [sn.CrossEntropyLoss(0.1), sn.BCEWithLogitsLoss()])
def test_the_loss_is_checked(criterion):
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((5, 4))
    target = rng.integers(0, 4, 5) if step.is_classifier(criterion) else rng.uniform(0, 1, (5, 4))
    found = check.check_loss(criterion, logits, target)
    assert not found.wrong and max(error for *_, error in found.rows) <= 1e-12


# Text and column ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "file", "pairs", "tags"),
    [
        (sn.Conv2d(4, 6, 1), "conv", ["pointwise", "conv2d"], "CONV.3 CONV.5 CONV.6"),
        (sn.Conv2d(4, 4, 3, groups=4), "conv", ["depthwise", "conv2d"], "CONV.8 CONV.9 CONV.10"),
        (sn.Conv2d(4, 4, 3), "conv", ["grouped", "conv2d"], "CONV.2 CONV.7"),
        (sn.BatchNorm2d(4), "norm", ["batch_norm"], "BN.1 BN.4 BN.7"),
        (sn.ReLU6(), "activation", ["relu6"], "RELU6.1 RELU6.2"),
        (sn.Linear(4, 3), "linear", ["linear"], "LIN.1 LIN.4"),
        (sn.GlobalAvgPool2d(), "pool", ["global_avg_pool2d"], "GPOOL.1 GPOOL.2"),
        (sn.Flatten(), "linear", [], ""),
        (sn.Dropout(0.5), "dropout", ["dropout"], "DROP.1 DROP.2"),
        (sn.MaxPool2d(2), "max_pool", ["max_pool2d"], ""),
        (sn.CrossEntropyLoss(), "loss", ["cross_entropy"], "CE.1 CE.4"),
    ],
    ids=lambda value: getattr(value, "name", None),
)  # fmt: skip
def test_formula_and_code_are_those_of_the_layers_file(layer, file, pairs, tags):
    derivation, code = text.texts_of(layer)
    source = (page.HERE.parent / "layers" / f"{file}.py").read_text(encoding="utf-8")
    assert derivation in source
    titles = [title.split(",")[0] for title, _ in code]
    functions = [f"{name}_{way}" for name in pairs for way in ("forward", "backward")] or titles
    assert set(functions) <= set(titles) and len(set(titles)) == len(titles)
    assert titles[:2] == functions[:2] and (pairs or titles == ["Flatten.forward", "Flatten.backward"])
    for (title, lines), name in zip(code, titles, strict=True):
        first, last = map(int, re.search(r"lines (\d+) to (\d+)", title).groups())
        assert f"scratchnet/layers/{file}.py" in title
        assert [line.strip() for line in lines.split("\n")] == [
            line.strip() for line in source.split("\n")[first - 1 : last]
        ]
        assert f"def {name.split('.')[-1]}(" in lines
    for tag in tags.split():
        assert f"({tag})" in derivation and f"({tag})" in "\n".join(lines for _, lines in code)


def test_a_join_shows_what_joins(taken):
    derivation, code = text.texts_of(
        *(lambda seen: (seen.layer, seen.step))(taken.layers[number_of(taken, "block", "close")])
    )
    assert "(SUM.1)" in derivation
    assert {"add", "sum_forward", "sum_backward"} == {title.split(",")[0] for title, _ in code}


def column_for(model):
    steps = sn.plan(model, fuse=False).steps
    layers = [step.Layer(one.names[0], one, 0, 0, 0, 0) for one in steps]
    return column.column_of(model, layers), layers


def test_the_column_folds_a_mobilenetv2_into_its_blocks():
    rows, layers = column_for(MobileNetV2(10, 0.1))
    assert [row["heading"] for row in rows if "heading" in row] == ["features"]
    blocks = [row["block"] for row in rows if row.get("block")]
    assert blocks == [*(f"features.{k}" for k in range(19)), "classifier"]
    assert [[layers[k].name for k in row["layers"]] for row in rows if row.get("block", "") is None] == [
        ["pool", "flatten"]
    ]
    assert next(row["kind"] for row in rows if row.get("block") == "features.3") == "Residual"
    assert [k for row in rows for k in row.get("layers", ())] == [*range(len(layers))]


@pytest.mark.parametrize(
    ("model", "headings", "blocks"),
    [
        (ResNet(20, 10, 0.1), ["layer1", "layer2", "layer3"], 9),
        (UNet(3, 2, 4, 2), ["level"], 3),
        (sn.Residual(sn.Conv2d(3, 3, 1)), [], 0),
    ],
    ids=["ResNet", "UNet", "Residual"],
)
def test_the_column_of_other_networks(model, headings, blocks):
    rows, layers = column_for(model)
    assert [row["heading"] for row in rows if "heading" in row] == headings
    assert sum(bool(row.get("block")) for row in rows) == blocks
    assert [k for row in rows for k in row.get("layers", ())] == [*range(len(layers))]


# What a page holds ----------------------------------------------------------------------------------------------------


def unpacked(coded, floats):
    data = zlib.decompress(base64.b64decode(coded))
    return np.frombuffer(data, "<f4", floats), np.frombuffer(data, np.uint8, offset=4 * floats)


@pytest.mark.parametrize("is_gradient", [False, True])
@pytest.mark.parametrize("low", [-2.0, 0.0])
def test_a_heat_map_holds_the_array_to_half_a_step(low, is_gradient):
    array = np.random.default_rng(6).uniform(low, 3, (4, 5, 40, 30)).astype(np.float32)
    array[0, 0, 0, 0] = 40  # far beyond the others
    array[1, 2] = 0
    made = pack.pack_array(array, 3, 2, is_gradient)
    assert made["shape"] == [5, 40, 30] and made["kept"] == 2 and made["signed"] == (is_gradient or low < 0)
    exact, levels = unpacked(made["data"], 3 * 2 * 3)
    shown = array[:3, :2]
    steps = 127 if made["signed"] else 255
    values = (levels.reshape(shown.shape).astype(float) - 128 * made["signed"]) * made["scale"] / steps
    assert 2.9 < made["scale"] < 3.1
    np.testing.assert_allclose(
        values, np.clip(shown, -made["scale"], made["scale"]), atol=0.501 * made["scale"] / steps
    )
    rows = exact.reshape(3, 2, 3)
    assert np.array_equal(rows[..., 0], shown.min(axis=(2, 3))) and np.array_equal(rows[..., 1], shown.max(axis=(2, 3)))
    np.testing.assert_allclose(rows[..., 2], shown.mean(axis=(2, 3)), rtol=1e-5)
    assert made["min"] == array.min() and made["max"] == 40 and made["zeros"] == (array == 0).mean()
    assert made["rms"] == pytest.approx(np.sqrt((array.astype(float) ** 2).mean()))


def test_zeros_have_the_colour_of_zero():
    made = pack.pack_array(np.zeros((2, 3, 4, 4), np.float32), 2, 3, True)
    assert set(unpacked(made["data"], 18)[1]) == {128} and made["scale"] == 1
    rare = np.zeros((2, 3, 40, 40), np.float32)
    rare[0, 0, 0, 0] = 0.5  # rarer than the share that colours tell apart
    assert pack.pack_array(rare, 2, 3, False)["scale"] == 0.5


def test_many_channels_of_few_pixels_are_all_kept():
    array = np.ones((2, 300, 1, 1), np.float32)
    assert pack.pack_array(array, 2, 4, False)["kept"] == 300
    assert pack.pack_array(array[:, :, 0, 0], 2, 4, False)["kept"] == 300
    assert pack.pack_array(np.ones((2, 300, 32, 32), np.float32), 2, 4, False)["kept"] == 4


@pytest.mark.parametrize("shape", [(6,), (70, 200), (7, 5, 1, 1), (9, 1, 3, 3), (4, 3, 3, 2)])
def test_a_parameter_is_said_by_what_it_was_and_what_changed_most(shape):
    rng = np.random.default_rng(7)
    before, gradient = rng.uniform(0.5, 1.5, (2, *shape)).astype(np.float32) * rng.choice([-1, 1], (2, *shape))
    before, gradient = before.astype(np.float32), gradient.astype(np.float32)
    gradient[3] *= 50  # that channel changes most
    change = step.Change(before, gradient, before - np.float32(0.1) * gradient)
    made = pack.pack_change(change)
    difference = (change.after - before).astype(float)
    for key, part in (("norm", before), ("gradient", gradient), ("after", change.after), ("change", difference)):
        assert made[key] == pytest.approx(np.linalg.norm(part.astype(float)), rel=1e-5)
    assert made["top"][0][0] == 3
    part = np.linalg.norm(difference[3]) / np.linalg.norm(before[3])
    assert made["top"][0][1] == pytest.approx(part, rel=1e-4)
    exact, levels = unpacked(made["data"], 4 * shape[0])
    parts = [*change, change.after - change.before]
    for row, part in zip(exact.reshape(4, -1), parts, strict=True):
        sizes = part if len(shape) == 1 else np.linalg.norm(part.reshape(shape[0], -1).astype(float), axis=1)
        np.testing.assert_allclose(row, sizes, rtol=0 if len(shape) == 1 else 1e-6)
    rows, columns = made["rows"], made["columns"]
    maps = levels.reshape(2, rows, columns, *made["cell"])
    wanted = gradient.reshape(*shape, *[1] * (4 - len(shape)))[:rows, :columns]
    values = (maps[1].astype(float) - 128) * made["scales"][1] / 127
    scale = made["scales"][1]
    np.testing.assert_allclose(values, np.clip(wanted, -scale, scale), atol=0.501 * scale / 127)


def facts_in(path):
    html = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1]), html


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Checkpoints: of a ResNet by a run on CIFAR-10, and of U-Nets by themselves."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(8)
    model = ResNet(20, 10, 0.1, rng=rng)
    config = {
        "model": "resnet20", "variant": "cifar", "width": 0.1, "dropout": 0.0, "image_size": 32, "seed": 0,
        "normalise": "half", "title": "ResNet-20 </script><b>", "lr": 0.2, "label_smoothing": 0.1,
        "data": {"name": "CIFAR-10", "sha256": "0" * 64},
    }  # fmt: skip
    arrays = {f"model/{key}": value for key, value in model.state_dict().items()}
    checkpoint.save(folder / "run.npz", arrays, {"config": config, "epoch": 3})
    sn.save(folder / "unet.npz", UNet(3, 2, 3, 1, rng=rng))
    sn.save(folder / "grey.npz", UNet(1, 2, 3, 1, rng=rng))
    return folder


@pytest.fixture
def folders(tmp_path):
    """Two folders of pictures, grey ones and noise."""
    image, rng = pytest.importorskip("PIL.Image", reason="pictures are read by Pillow"), np.random.default_rng(9)
    for k, name in enumerate(["grey", "noise"]):
        for part, count in (("train", 2), ("test", 3)):
            place = tmp_path / "pictures" / part / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3)) if k else np.full((32, 32, 3), 40 * number)
                image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return tmp_path / "pictures"


def test_a_runs_checkpoint_is_fed_as_the_run_was(files):
    subject = read_subject(files / "run.npz", batch_size=6)
    assert subject.lr == 0.2 and subject.criterion.label_smoothing == 0.1
    np.testing.assert_allclose(subject.x, subject.pictures / 255 * 2 - 1, atol=1e-5)
    assert subject.classes[3] == "cat" and subject.names[0] == "disc"
    assert "trained on CIFAR-10 and is shown drawn shapes" in subject.notes[0]
    again = read_subject(files / "run.npz", pictures=(7, 3), batch_size=6, lr=0.5)
    assert again.numbers == [7, 3, 4, 5, 6, 8] and again.lr == 0.5
    assert np.array_equal(again.pictures[1], subject.pictures[3])


def test_a_file_that_says_nothing_of_its_classes(files):
    sn.save(files / "few.npz", ResNet(20, 7, 0.1))
    with pytest.raises(ValueError, match="few.npz has 7 classes, and these pictures are of 10"):
        read_subject(files / "few.npz", batch_size=16)
    sn.save(files / "many.npz", MobileNetV2(1000, 0.1, "imagenet"))
    subject = read_subject(files / "many.npz", batch_size=2, count=2)
    assert subject.x.shape == (2, 3, 224, 224) and subject.pictures.shape == (2, 3, 32, 32) and subject.lr == 0.1
    assert "labels are taken for their numbers" in subject.notes[0] and subject.classes[0] == "tench"
    top = (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    assert np.all(subject.x.max(axis=(0, 2, 3)) <= top + 1e-4)


def test_pictures_of_ones_own(files, folders, capsys):
    arrays, header = checkpoint.load(files / "run.npz")
    config = header["config"]
    arrays |= {f"model/fc.{key}": arrays[f"model/fc.{key}"][:2] for key in ("weight", "bias")}
    config["data"] |= {"name": "pictures", "classes": ["grey", "noise"], "side": 32}
    checkpoint.save(files / "own.npz", arrays, {"config": config, "epoch": 1})
    subject = read_subject(files / "own.npz", folders, pictures=(3,), count=2, batch_size=9)
    assert subject.numbers == [3, 4, 5, 0, 1, 2][:2] + [5, 0, 1, 2] and subject.labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert subject.classes == subject.names == ["grey", "noise"] and not subject.notes
    assert np.array_equal(subject.pictures[3:, 0, 0, 0], [0, 40, 80])
    assert main([str(files / "run.npz"), "--data", str(folders)]) == 2
    assert "with other classes" in capsys.readouterr().err
    assert main([str(files / "own.npz"), "--data", str(folders), "--picture", "6"]) == 2
    assert (
        "--picture 6: there are 6 test pictures from pictures, tested on test/, numbered from 0 to 5"
        in capsys.readouterr().err
    )


def test_the_page_holds_the_step(files, tmp_path):
    size, channels = explore(files / "run.npz", tmp_path / "page.html", pictures=(2,), batch_size=5)
    facts, html = facts_in(tmp_path / "page.html")
    assert size == (tmp_path / "page.html").stat().st_size and channels > 1000
    assert facts["numbers"] == [2, 3, 4, 5] and facts["batch"] == 5 and facts["title"] == "ResNet-20 </script><b>"
    assert html.count("</script>") == 2  # the title does not end one
    assert not re.search(r"(src|href)=.?(https?:|//)", html)
    subject = read_subject(files / "run.npz", pictures=(2,), batch_size=5)
    taken = step.take_step(subject.model, subject.criterion, subject.x, subject.target, subject.lr)
    assert facts["loss"]["before"] == taken.loss and facts["loss"]["after"] == taken.after
    assert facts["loss"]["logits"] == taken.logits[:4].tolist()
    np.testing.assert_allclose(np.sum(facts["loss"]["p_after"], axis=1), 1)
    assert [layer["name"] for layer in facts["layers"]] == [layer.name for layer in taken.layers]
    assert set(facts["parameters"]) == set(read(files / "run.npz").state) - {
        key for key in read(files / "run.npz").state if "running" in key or "num_" in key
    }
    for k, array in enumerate(taken.arrays):
        assert facts["arrays"][k]["max"] == array.max(), k
    assert all(not layer["check"] or not layer["check"]["wrong"] for layer in facts["layers"])


def test_a_smaller_page_keeps_fewer_channels(files, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "check_layers", lambda model, taken: [None] * len(taken.layers))
    subject = read_subject(files / "unet.npz", batch_size=3)
    whole, _ = page.write_page(subject, tmp_path / "whole.html", shown=2)
    size, channels = page.write_page(subject, tmp_path / "few.html", shown=2, most_bytes=whole - 30_000)
    facts, _ = facts_in(tmp_path / "few.html")
    assert size <= whole - 30_000 and channels < 8 and facts["channels"] == channels
    assert (
        max(array["kept"] for array in facts["arrays"] if len(array["shape"]) > 1 and array["shape"][1] == 32)
        == channels
    )


def test_a_network_of_maps_is_held_to_bright_pixels(files):
    subject = read_subject(files / "unet.npz", count=2, batch_size=3)
    assert subject.target.shape == (3, 2, 32, 32) and set(np.unique(subject.target)) == {0, 1}
    assert not step.is_classifier(subject.criterion) and "brighter" in subject.notes[0]


# The command ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{}/none.npz"], "none.npz cannot be read: No such file"),
        (["{}/text.npz"], "text.npz: its first bytes are those of no format"),
        (["{}/grey.npz"], "the network takes 1 channels, and pictures have 3"),
        (["{}/run.npz", "--picture", "1000"], "--picture 1000: there are 1,000 test pictures drawn"),
        (["{}/run.npz", "--picture", "-1"], "--picture must be at least 0, got -1"),
        (["{}/run.npz", "--picture", "one"], "--picture must be a whole number, got 'one'"),
        (["{}/run.npz", "--batch-size", "1"], "--batch-size must be at least 2, got 1"),
        (["{}/run.npz", "--data", "{}/nowhere"], "nowhere holds no data"),
        (["{}/run.npz", "-o", "{}/run.npz"], "is the checkpoint itself"),
        (["{}/run.npz", "--pictures", "1"], "unrecognized arguments: --pictures"),
        ([], "the following arguments are required: CHECKPOINT"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_said_in_a_line(arguments, says, files, capsys):
    (files / "text.npz").write_text("hello")
    before = (files / "run.npz").read_bytes()
    assert main([argument.format(files) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("python -m scratchnet.explore: error: ")
    assert says in err
    assert (files / "run.npz").read_bytes() == before


def test_what_goes_wrong_on_the_way_is_code_1(files, tmp_path, capsys):
    assert main([str(files / "unet.npz"), "-o", str(tmp_path / "no" / "page.html"), "--batch-size", "2"]) == 1
    assert "page.html: No such file or directory" in capsys.readouterr().err
    assert main([str(files / "unet.npz"), "-o", str(tmp_path / "page.html"), "--batch-size", "2", "--lr", "1e30"]) == 1
    assert "is not finite" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_the_command_says_what_it_wrote(files, tmp_path, capsys):
    assert (
        main([str(files / "unet.npz"), "-o", str(tmp_path / "page.html"), "--batch-size", "2", "--picture", "4", "9"])
        == 0
    )
    assert re.fullmatch(r".*page.html: \d+\.\d MB\n", capsys.readouterr().out)
    facts, _ = facts_in(tmp_path / "page.html")
    assert facts["numbers"] == [4, 9]


def test_help_is_had(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "--picture" in capsys.readouterr().out


def test_the_demo_is_small_and_learns(tmp_path):
    size, channels = small.demo(tmp_path / "demo.html", steps=2)
    facts, _ = facts_in(tmp_path / "demo.html")
    assert size < small.MOST_BYTES and channels > 1000  # all of them
    assert facts["loss"]["after"] < facts["loss"]["before"]
    assert "for 2 steps" in facts["title"]
