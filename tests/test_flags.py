"""The command line: what it refuses, in one line and before anything is touched, and what it says of itself."""

import re
import sys

import pytest
from runs import ROOT, SMALL, few_pictures

import train_cifar
from scratchnet.program import data as program_data
from scratchnet.program import flags, memory, setup


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(program_data, "draw_shapes", few_pictures)


BAD = {
    "no epochs": (["--epochs", "0"], "--epochs must be at least 1, got 0"),
    "a million epochs": (["--epochs", "9" * 400], "--epochs must be at most 1000000, got 999"),
    "negative seed": (["--seed", "-1"], "--seed must be at least 0, got -1"),
    "no data": (["--data", "/nowhere/at/all"], "--data and --sample exclude each other"),
    "batch too large": (["--batch-size", "1000"], "batch_size must be at most 108"),
    "negative rate": (["--lr", "-1"], r"--lr must be in \[0, 1e30\], got -1"),
    "rate nan": (["--lr", "nan"], r"--lr must be in \[0, 1e30\], got nan"),
    "rate 1e308": (["--lr", "1e308"], r"--lr must be in \[0, 1e30\], got 1e308"),
    "decay inf": (["--weight-decay", "inf"], r"--weight-decay must be in \[0, 1e6\], got inf"),
    "width 0": (["--width", "0"], r"--width must be in \(0, 100\], got 0"),
    "width inf": (["--width", "inf"], r"--width must be in \(0, 100\], got inf"),
    "width 100": (["--width", "100"], r"takes about [\d,]+ GiB, and [\d,]+ [GM]iB are free: about --width [\d.]+ fits"),
    "large pictures": (["--image-size", "20000"], r"--image-size 20000 and .* are free: about --image-size \d+ fits"),
    "many pictures": (["--image-size", "512", "--batch-size", "100"], r"are free: about --batch-size \d+ fits"),
    "one picture": (["--variant", "imagenet", "--batch-size", "1"], "--batch-size 1 with --image-size 32 is too little: "),
    "one small one": (["--image-size", "8", "--batch-size", "1"], "--batch-size 1 with --image-size 8 is too little: "),
    "many threads": (["--threads", "1000000"], "--threads must be at most 1024, got 1000000"),
    "no ranks": (["--ranks", "0"], "--ranks must be at least 1, got 0"),
    "some ranks": (["--ranks", "some"], "--ranks must be auto, or a whole number, got 'some'"),
    "no patience": (["--rank-timeout", "0"], "--rank-timeout must be at least 1, got 0"),
    "momentum 2": (["--momentum", "2"], r"--momentum must be in \[0, 1\), got 2"),
    "dropout 1": (["--dropout", "1"], r"--dropout must be in \[0, 1\), got 1"),
    "smoothing 2": (["--label-smoothing", "2"], r"--label-smoothing must be in \[0, 1\], got 2"),
    "no GPU": (["--device", "cuda"], "device 'cuda' needs"),
    "no checkpoint": (["--eval", "/nowhere.npz"], "/nowhere.npz cannot be read"),
    "two lines": (["--eval", "/nowhere\n.npz"], r"/nowhere\\n.npz cannot be read"),
    "predict nothing": (["--predict", "best.npz"], "--predict needs a checkpoint and at least one picture"),
    "predict without one": (["--predict", "/nowhere.npz", "a.png"], "/nowhere.npz cannot be read"),
    "decay 1": (["--ema", "1"], r"--ema must be in \[0, 1\), got 1"),
    "padding 32": (["--crop-padding", "32"], "--crop-padding must be at most 31, got 32"),
    "out is a file": (["--out", str(ROOT / "README.md")], "README.md cannot be used"),
    "no such flag": (["--no-such-flag"], "there is no flag --no-such-flag"),
    "a misspelt flag": (["--batchsize=3"], "there is no flag --batchsize=3: did you mean --batch-size?"),
    "a short flag": (["--epo", "3"], "there is no flag --epo: did you mean --epochs?"),
    "no flag": (["fast"], "unexpected 'fast'"),
    "no such choice": (["--variant", "resnet"], "--variant: invalid choice: 'resnet'"),
    "no number": (["--epochs", "many"], "--epochs must be a whole number, got 'many'"),
    "no home": (["--out", "~no-such-user/x"], "--out must be a path; there is no home folder ~no-such-user"),
    "where one is": (["--out", "."], "--out .: no later run could move it aside"),
    "above where one is": (["--out", ".."], "--out ..: no later run could move it aside"),
    "eval a width": (["--eval", "best.npz", "--width", "1"], "--width cannot go with --eval"),
    "eval and predict": (["--eval", "best.npz", "--predict", "best.npz", "a"], "--predict cannot go with --eval"),
    "predict the sample": (["--predict", "best.npz", "a", "--sample"], "--sample cannot go with --predict"),
    "no padding": (["--augment", "none", "--crop-padding", "2"], "--crop-padding does nothing with --augment none"),
    "Adam's momentum": (["--optimizer", "adam", "--momentum", "0.5"], "--momentum does nothing with --optimizer adam"),
    "no dropout": (["--preset", "blog", "--dropout", "0.5"], "--dropout does nothing with --variant blog"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2_and_moves_no_earlier_run(case, tmp_path, capsys, monkeypatch):
    given, message = BAD[case]
    if case == "no GPU" and train_cifar.resolve_device("auto") == "cuda":
        pytest.skip("there is a GPU")
    earlier = tmp_path / "run"
    earlier.mkdir()
    (earlier / "config.json").write_text("{}")
    testing = given[0] in ("--eval", "--predict")
    place = [] if testing or "--out" in given else ["--out", str(earlier)]
    assert train_cifar.main([*([] if testing else SMALL), *place, *given]) == 2
    out, error = capsys.readouterr()
    assert re.search(message, error) and error.count("\n") == 1 and not out, error
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "config.json"]


def test_every_number_has_a_range_that_nan_is_outside_of(capsys):
    for action in flags.make_parser("")._actions:
        if isinstance(action.default, float):
            assert train_cifar.main([action.option_strings[0], "nan"]) == 2
            assert f"{action.option_strings[0]} must be in " in capsys.readouterr().err


def test_help_is_grouped_and_says_each_default(capsys):
    with pytest.raises(SystemExit) as stop:
        train_cifar.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for part in (
        "data:",
        "network:",
        "training:",
        "machine:",
        "output:",
        "--checkpoint-every",
        "(default: one-cycle)",
        "cifar-100-python/",
        "a folder for each class",
    ):
        assert part in text


def test_help_says_what_presets_set_and_shows_the_defaults_of_the_one_that_is_named(capsys):
    texts = {}
    for name in flags.PRESETS:
        with pytest.raises(SystemExit):
            train_cifar.main(["--preset", name, "--help"])
        texts[name] = " ".join(capsys.readouterr().out.split())
        assert f"see below (default: {name})" in texts[name]
        for listed, values in flags.PRESETS.items():
            words = [flags._flag(key) + ("" if value is True else f" {value}") for key, value in values.items()]
            assert flags.ABOUT[listed] in texts[name] and " ".join(words) in texts[name]
    assert "passes over the training pictures (default: 20)" in texts["best"]
    assert "its mirror image (default: True)" in texts["best"] and "its mirror image (default: False)" in texts["quick"]


def test_presets_are_defaults_that_flags_win_over():
    blog = flags.parse(["--preset", "blog", "--epochs", "3"], "")
    assert (blog.variant, blog.image_size, blog.optimizer, blog.lr, blog.batch_size) == ("blog", 96, "adam", 0.01, 256)
    assert blog.epochs == 3
    assert flags.parse([], "").variant == "cifar"
    best = flags.parse(["--preset", "best", "--no-flip-test"], "")
    assert best.augment == "crop-alternate" and best.zero_init_residual and not best.flip_test


@pytest.mark.parametrize(
    ("width", "image_size", "batch_size", "free"),
    [(0.5, 64, 100, 1 << 30), (0.25, 512, 2, 1 << 28), (60, 32, 16, 1 << 32), (1, 32, 4096, 1 << 31)],
)
@pytest.mark.parametrize("more", [(), (False, 3)])
def test_what_is_said_to_fit_does_fit(width, image_size, batch_size, free, more):

    def network(factor):
        return train_cifar.MobileNetV2(10, factor)

    asked = {"width": width, "image-size": image_size, "batch-size": batch_size}
    line = memory.too_large(network, *asked.values(), free, *more)
    flag, value = re.search(r"about --(\S+) (\S+) fits$", line).groups()
    asked[flag] = type(asked[flag])(float(value))
    if flag == "width":
        asked["batch-size"] = 2
    assert memory.too_large(network, *asked.values(), free, *more) is None
    assert memory.too_large(network, *asked.values(), None) is None, "nobody says how much there is"


@pytest.mark.parametrize(
    ("flags_given", "called", "device", "want"),
    [
        ([], False, "cpu", ["--ranks", "4", "--threads", "2"]),
        (["--threads", "3"], False, "cpu", ["--ranks", "4"]),
        (["--ranks", "3"], False, "cpu", ["--ranks", "3"]),
        (["--ranks", "3"], True, "cpu", ["--ranks", "3"]),
        (["--ranks", "2"], False, "cuda", ["--ranks", "2"]),
        (["--ranks", "1"], False, "cpu", None),
        ([], True, "cpu", None),
        ([], False, "cuda", None),
        (["--predict", "best.npz", "a.png"], False, "cpu", None),
    ],
)
def test_a_command_fills_the_machine_with_ranks_and_a_call_computes_here(
    flags_given, called, device, want, monkeypatch
):
    started = []

    def run_as_ranks(count, command, console):
        started.append((count, command))
        return code

    monkeypatch.setattr(setup, "run_as_ranks", run_as_ranks)
    monkeypatch.setattr(setup, "sensible_ranks", lambda cores, batch_size: (4, 2))
    monkeypatch.setattr(sys, "argv", ["train_cifar.py", *flags_given])
    args = flags.parse(flags_given, "")
    for code in (0, 143, None):  # None: MPI cannot start here
        found = setup.set_ranks(args, device, "program.py", flags_given if called else None, None)
        assert found == (code if want else None)
    if want:
        assert started == [(int(want[1]), [sys.executable, "program.py", *flags_given, *want])] * 3
    else:
        assert not started
