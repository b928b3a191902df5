"""The program on data of one's own: class folders, and CIFAR-100, from training to prediction."""

import json
import re

import numpy as np
import pytest
from runs import content, make_tiny

import scratchnet as sn
import train_cifar
from scratchnet.data import shapes
from scratchnet.program import data as program_data
from scratchnet.program import flags
from scratchnet.training import checkpoint

FLAGS = ["--width", "0.1", "--batch-size", "18", "--epochs", "2", "--lr", "0.02", "--ranks", "1", "--threads", "1"]
CLASSES = ("cross", "disc", "stripes across")


def write_pictures(folder, names, count, seed=0, size=32):
    """Class folders of drawn shapes: PNG files, a folder for each name of a shape."""
    image = pytest.importorskip("PIL.Image")
    drawn, _ = shapes.draw_shapes(20 * count, 0, seed)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in np.flatnonzero(drawn.labels == shapes.CLASSES.index(name))[:count]:
            picture = image.fromarray(drawn.images[k].transpose(1, 2, 0)).resize((size, size))
            picture.save(folder / name / f"{k}.png")


def run(*arguments):
    return train_cifar.main([*map(str, arguments)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `pictures`, and `run`, of a network that was trained on them."""
    folder = tmp_path_factory.mktemp("own")
    write_pictures(folder / "pictures", CLASSES, 20, size=40)
    assert run(*FLAGS, "--data", folder / "pictures", "--image-size", 24, "--out", folder / "run") == 0
    return folder


def test_outputs_names_and_numbers_follow_from_the_data(trained):
    config = json.loads((trained / "run" / "config.json").read_text())
    assert config["data"] | {"sha256": ""} == {"name": "pictures", "sha256": "", "classes": [*CLASSES], "side": 24}
    assert config["normalise"] == "data" and config["title"].endswith("on pictures, seed 0")
    args = flags.parse(["--data", str(trained / "pictures"), "--image-size", "24"], "")
    train, test, _ = program_data.load_data(args, train_cifar.Console())
    pixels = train.images / 255
    np.testing.assert_allclose(config["mean"], pixels.mean(axis=(0, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(config["std"], pixels.std(axis=(0, 2, 3)), atol=1e-4)
    result = json.loads((trained / "run" / "result.json").read_text())
    assert list(result["class_accuracy"]) == [*CLASSES] and (len(train.labels), len(test.labels)) == (54, 6)
    log = (trained / "run" / "log.txt").read_text()
    for line in (
        f"data      pictures, from {trained / 'pictures'}, a tenth of each class held out to test on",
        "          normalised by the training pictures' mean 0.",
        "          3 classes: cross, disc, stripes across",
        "          at 24×24",
        "on 6 pictures of pictures",
    ):
        assert line in log
    assert "CIFAR" not in log
    assert checkpoint.load(trained / "run" / "best.npz")[0]["model/classifier.1.weight"].shape[0] == 3


def test_eval_repeats_the_test_and_wants_to_know_where_the_pictures_are(trained, capsys):
    best = trained / "run" / "best.npz"
    said = (trained / "run" / "log.txt").read_text().splitlines()[-2:]
    assert run("--eval", best, "--data", trained / "pictures") == 0
    assert capsys.readouterr().out.splitlines()[-2:] == said
    assert run("--eval", best) == 2
    assert "best.npz was trained on pictures: say with --data where its pictures are" in capsys.readouterr().err
    assert run("--eval", best, "--sample") == 2
    line = "was trained on pictures, and these pictures are drawn shapes, with other classes"
    assert line in capsys.readouterr().err


def test_eval_takes_other_pictures_of_the_same_classes_and_says_so(trained, tmp_path, capsys):
    write_pictures(tmp_path / "others", CLASSES, 10, seed=5)
    assert run("--eval", trained / "run" / "best.npz", "--data", tmp_path / "others") == 0
    out = capsys.readouterr().out
    assert "3 test pictures of others" in out and "trained on other pictures that are named pictures\n" in out
    (tmp_path / "others" / "disc").rename(tmp_path / "others" / "plate")
    assert run("--eval", trained / "run" / "best.npz", "--data", tmp_path / "others") == 2
    assert "with other classes (disc, plate, …): it can be tested on those of pictures only" in capsys.readouterr().err


def test_predict_sees_pictures_as_training_did(trained, capsys):
    best, files = trained / "run" / "best.npz", sorted((trained / "pictures" / "disc").iterdir())[:3]
    assert run("--predict", best, *files) == 0
    lines = capsys.readouterr().out.splitlines()
    args = flags.parse([], "")
    model, header = train_cifar.load_model(best, args, "cpu")
    config = header["config"]
    images = train_cifar.read_pictures(files, 24) / 255
    mean, std = (np.array(config[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    logits = model.eval()(((images - mean) / std).astype(np.float32)).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for line, file, share in zip(lines, files, shares, strict=True):
        said = dict(re.findall(r"([a-z ]+?) (\d+\.\d) %", line.removeprefix(f"{file}: ").replace(", ", "")))
        for name, value in zip(CLASSES, share, strict=True):
            assert float(said[name]) == pytest.approx(100 * value, abs=0.11)


def test_resume_goes_on_with_the_same_pictures_and_refuses_others(trained, tmp_path, capsys):
    flags_of_run = [
        *FLAGS,
        "--data",
        trained / "pictures",
        "--image-size",
        24,
        "--out",
        tmp_path,
        "--checkpoint-every",
        1,
    ]
    whole, stop = content(trained / "run"), train_cifar.Trainer.save

    def interrupted(self):
        stop(self)
        if self.steps_done == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cifar.Trainer, "save", interrupted)
        assert run(*flags_of_run) == 130
    assert run(*flags_of_run, "--resume") == 0
    assert content(tmp_path) == whole
    write_pictures(tmp_path / "others", (*CLASSES[:2], "ring"), 20, seed=5)
    capsys.readouterr()
    assert run(*flags_of_run, "--resume", "--data", tmp_path / "others") == 2
    error = capsys.readouterr().err
    assert "data's name was 'pictures', now 'others'" in error and error.count("\n") == 1
    assert (
        "data's classes was 'cross, disc, stripes across', now 'cross, disc, ring'" in error and "mean was [" in error
    )


def forge(source, target, **config):
    arrays, header = checkpoint.load(source)
    changed = {key: value for key, value in (header["config"] | config).items() if value is not None}
    checkpoint.save(target, arrays, header | {"config": changed})


def older(config):
    """A configuration as it was before it said what the data's classes are."""
    data = {"name": config["data"]["name"], "sha256": config["data"]["sha256"]}
    return {"mean": None, "std": None, "data": data}


def test_older_checkpoints_are_of_cifar_10_or_of_drawn_shapes(tmp_path, monkeypatch, capsys):
    make_tiny(monkeypatch)
    noise = program_data.draw_shapes
    monkeypatch.setattr(program_data, "draw_shapes", lambda seed: [d._replace(name=shapes.NAME) for d in noise(seed)])
    args = ["--sample", "--image-size", "8", "--width", "0.1", "--batch-size", "36", "--normalise", "cifar", *FLAGS[4:]]
    args += ["--out", str(tmp_path)]
    assert run(*args) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["data"]["classes"] == [*shapes.CLASSES]
    for name, first in (("CIFAR-10", "airplane"), (shapes.NAME, "disc")):
        changed = older(config)
        changed["data"]["name"] = name
        forge(tmp_path / "best.npz", tmp_path / "older.npz", **changed)
        parsed = flags.parse([], "")
        _, header = train_cifar.load_model(tmp_path / "older.npz", parsed, "cpu")
        assert header["config"]["data"]["classes"][0] == first
        assert parsed.mean == list(flags.NORMALISE["cifar"][0]) and header["config"]["data"]["side"] == 32
    forge(tmp_path / "last.npz", tmp_path / "last.npz", **older(config))
    capsys.readouterr()
    assert run(*args, "--resume") == 0, capsys.readouterr()
    assert "resuming" in capsys.readouterr().out


WRONG = {
    "one class": ({"classes": ["a"]}, r"'classes' in 'data' in .* is \['a'\], expected a list of two names or more"),
    "numbers": ({"classes": [1, 2, 3]}, "expected a list of two names or more"),
    "lines": ({"classes": ["a", "b\n", "c"]}, "expected a list of two names or more"),
    "more classes": ({"classes": [*"abcd"]}, "has no output for each of its 4 classes"),
    "no side": ({"side": 0}, "'side' in 'data' in .* is 0, expected a whole number from 1 to 16384"),
    "no deviation": ({"std": [0.2, 0.0, 0.2]}, r"\[1\] of 'std' in .* is 0.0, expected a number from 1e-06 to 1"),
    "two means": ({"mean": [0.2, 0.2]}, "'mean' in .*, expected a list of 3"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_checkpoint_says_of_its_data_is_checked(trained, tmp_path, case, capsys):
    change, message = WRONG[case]
    data = json.loads((trained / "run" / "config.json").read_text())["data"]
    change = {"data": data | change} if set(change) & set(data) else change
    forge(trained / "run" / "best.npz", tmp_path / "forged.npz", **change)
    assert run("--predict", tmp_path / "forged.npz", "a.png") == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1 and "forged.npz" in error, error


def test_the_numbers_of_cifar_10_are_its_own_unless_others_are_asked_for():
    drawn = shapes.draw_shapes(50, 0)[0]
    for name, given, want in (
        ("CIFAR-10", None, "cifar"), (shapes.NAME, None, "cifar"), ("CIFAR-100", None, "data"), ("pets", None, "data"),
        ("CIFAR-10", "data", "data"), ("pets", "half", "half"),
    ):  # fmt: skip
        args = flags.parse(["--normalise", given] if given else [], "")
        program_data.set_normalisation(args, drawn._replace(name=name))
        assert args.normalise == want
        assert want == "data" or (tuple(args.mean), tuple(args.std)) == flags.NORMALISE[want]
        assert want != "data" or args.mean == pytest.approx((drawn.images / 255).mean(axis=(0, 2, 3)), abs=1e-4)


def test_too_few_pictures_are_one_line(tmp_path, capsys):
    write_pictures(tmp_path / "few", CLASSES[:2], 2)
    assert run(*FLAGS, "--data", tmp_path / "few", "--out", tmp_path / "run") == 2
    assert "few: 2 training pictures are too few to hold out a tenth of them" in capsys.readouterr().err
    (tmp_path / "few" / "disc" / "x.png").write_bytes(b"torn")
    assert run(*FLAGS, "--data", tmp_path / "few", "--out", tmp_path / "run") == 2
    assert re.search(r"few has 1 of 5 pictures .*disc/x\.png cannot be read: it is no PNG", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_hundred_classes_train_and_are_reported(tmp_path, monkeypatch, capsys):
    def hundred(path, **options):
        rng = np.random.default_rng(0)
        names = tuple(f"class {k}" for k in range(100))
        return *(
            program_data.shapes.Dataset(
                rng.integers(0, 256, (n, 3, 32, 32), np.uint8), np.arange(n) % 100, names, "CIFAR-100"
            )
            for n in (300, 200)
        ), ""

    monkeypatch.setattr(program_data, "load_pictures", hundred)
    assert run(*FLAGS, "--epochs", 1, "--data", "folder", "--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert "CIFAR-100, from folder" in out and "100 classes: class 0, class 1, " in out and "of 100  accuracy" in out
    assert len(json.loads((tmp_path / "result.json").read_text())["class_accuracy"]) == 100


def test_batches_are_exported():
    assert sn.Batches is train_cifar.make_batches.__globals__["Batches"]
