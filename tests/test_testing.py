"""What train_cifar.py tests: on which pictures, by which loss, and where nothing can be drawn or read."""

import csv
import re
import shutil

import numpy as np
import pytest
from runs import SMALL, few_pictures, run

import scratchnet as sn
import train_cifar
from scratchnet.data import cifar10
from scratchnet.data.cifar import CIFAR10
from scratchnet.program import data as program_data
from scratchnet.program import setup
from scratchnet.training import checkpoint
from scratchnet.training.evaluation import evaluate


def as_cifar(*_, **options):
    """In place of `load_pictures`."""
    return *(data._replace(name="CIFAR-10", classes=CIFAR10) for data in few_pictures(0)), ""


def no_network():
    raise cifar10.DataError("cannot download CIFAR-10: no route to host")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run."""
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program_data, "draw_shapes", few_pictures)
        assert run("--out", out, "--epochs", 1) == 0
    return out


@pytest.fixture
def best(trained, tmp_path, monkeypatch, capsys):
    """The best checkpoint of a short run, in a folder of its own."""
    monkeypatch.setattr(program_data, "draw_shapes", few_pictures)
    monkeypatch.setattr(program_data, "load_pictures", as_cifar)
    monkeypatch.setattr(cifar10, "find_or_download", no_network)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "best.npz"


def forge(path, **config):
    """Write the checkpoint again, with other fields in its configuration."""
    arrays, header = checkpoint.load(path)
    checkpoint.save(path, arrays, header | {"config": header["config"] | config})


@pytest.mark.parametrize("flags", [[], ["--sample"]])
def test_a_network_for_cifar_is_not_tested_on_drawn_shapes(flags, best, capsys):
    forge(best, data={"name": "CIFAR-10", "sha256": ""})
    assert train_cifar.main(["--eval", str(best), *flags]) == 2
    out, error = capsys.readouterr()
    assert not out and error.count("\n") == 1
    assert ("was trained on CIFAR-10, and these pictures are drawn shapes" if flags else "no route to host") in error
    assert train_cifar.main(["--eval", str(best), "--data", "folder"]) == 0
    assert "trained on other pictures that are named CIFAR-10 too" in capsys.readouterr().out


def test_a_network_for_drawn_shapes_is_not_tested_on_cifar(best, capsys):
    assert train_cifar.main(["--eval", str(best), "--data", "folder"]) == 2
    out, error = capsys.readouterr()
    assert "was trained on drawn shapes, and these pictures are CIFAR-10" in error and not out


def test_numbers_are_said_where_no_picture_can_be_drawn(best, capsys):
    pytest.importorskip("matplotlib")
    picture = best.with_suffix(".confusion.png")
    picture.mkdir()
    assert train_cifar.main(["--eval", str(best)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3] == f"{picture} could not be drawn: Is a directory" and lines[-1].startswith("Test accuracy: ")


def test_one_bad_picture_of_three_is_named_and_the_others_are_predicted(best, tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    good, bad, missing = (tmp_path / name for name in ("good.png", "bad.png", "missing.png"))
    image.new("RGB", (32, 32)).save(good)
    bad.write_bytes(b"no picture")
    assert train_cifar.main(["--predict", *map(str, (best, bad, good, missing))]) == 2
    out, error = capsys.readouterr()
    assert out.startswith(f"{good}: ") and out.count("\n") == 1
    assert [str(path) in line for path, line in zip((bad, missing), error.splitlines(), strict=True)] == [True, True]


BAD = {
    "a plain npz": (None, "is not a whole checkpoint|it is NumPy's own .npz"),
    "too wide": ({"width": 90}, "at width 90 there are about .* parameters, and it holds"),
    "wider than any": ({"width": 300}, r"no good --width must be in \(0, 100\], got 300"),
    "a word": ({"width": "wide"}, "no good --width must be a number, got 'wide'"),
    "a list": ({"variant": ["cifar"]}, "no good --variant: invalid choice"),
    "no size": ({"image_size": -1}, "no good --image-size must be at least 1"),
    "large pictures": ({"image_size": 100_000}, r"--image-size 100000 and .* takes about [\d,]+ GiB"),
    "data without a name": ({"data": {}}, "no good 'name'"),
    "data that is a list": ({"data": []}, "is a checkpoint of something else: its header has no good configuration"),
    "no title": ({"title": None}, "no good 'title'"),
    "another variant": ({"variant": "blog"}, "does not fit its own configuration"),
}


@pytest.mark.parametrize("mode", ["--eval", "--predict"])
@pytest.mark.parametrize("case", BAD)
def test_a_header_is_checked_before_it_is_believed(case, mode, best, capsys):
    config, message = BAD[case]
    if config is None:
        np.savez(best, weight=np.zeros(3))
    else:
        forge(best, **config)
    assert train_cifar.main([mode, str(best), *(["a.png"] if mode == "--predict" else [])]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(best) in error
    assert re.search(message, error), error


def test_the_validation_loss_is_the_plain_one_as_the_test_loss_is(best, tmp_path):
    args = train_cifar.parse([*SMALL, "--epochs", "1"], "")
    program_data.set_normalisation(args, few_pictures(0)[0])
    parts = setup.make_parts(args, few_pictures(0)[0], "cpu", train_cifar.make_model)
    model, _ = train_cifar.load_model(best, args, "cpu")
    with open(tmp_path / "metrics.csv") as file:
        (row,) = csv.DictReader(file)
    plain, smoothed = (evaluate(model, sn.CrossEntropyLoss(share), parts["validation"]).loss for share in (0, 0.1))
    assert float(row["val_loss"]) == pytest.approx(plain, rel=1e-7) and abs(plain - smoothed) > 1e-5


def test_without_a_home_folder_there_is_a_sentence_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    pwd = pytest.importorskip("pwd")

    def nobody(_):
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "SCRATCHNET_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(program_data, "draw_shapes", few_pictures)
    assert train_cifar.main([*SMALL[1:], "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    assert "is in a home folder that cannot be found" in capsys.readouterr().out.splitlines()[0]
