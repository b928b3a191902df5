"""The command line of train_cifar.py: its flags in groups, each with its range and default, and the presets.

Whatever is wrong with a command is a `UsageError` of one line, found before the program touches anything.
"""

import argparse
import os
import textwrap
from pathlib import Path

from scratchnet.data import cifar10
from scratchnet.data.readers import READERS
from scratchnet.program.parser import Formatter, Parser, UsageError, did_you_mean, path, real, whole
from scratchnet.training import schedule

VARIANTS = ("imagenet", "cifar", "blog")
MODELS = ("mobilenetv2", *(f"resnet{depth}" for depth in (18, 20, 32, 34, 44, 50, 56, 101)))
OPTIMIZERS = ("sgd", "adam", "adamw")
NORMALISE = {  # mean and std of each channel; "data" takes those of the training pictures
    "cifar": (cifar10.MEAN, cifar10.STD),
    "half": ((0.5,) * 3, (0.5,) * 3),
}
PRESETS: dict[str, dict] = {
    "quick": {},
    "blog": {
        "variant": "blog", "image_size": 96, "normalise": "half", "epochs": 15, "batch_size": 256, "augment": "none",
        "optimizer": "adam", "lr": 0.01, "schedule": "constant", "momentum": 0.0, "weight_decay": 0.0,
        "label_smoothing": 0.0, "dropout": 0.0,
    },
    "best": {
        "epochs": 20, "dropout": 0.0, "augment": "crop-alternate", "zero_init_residual": True, "flip_test": True,
    },
    "resnet20": {
        "model": "resnet20", "width": 1.0, "epochs": 20, "batch_size": 128, "weight_decay": 1e-4, "label_smoothing": 0.0,
    },
    "gpu": {
        "epochs": 100, "batch_size": 512, "lr": 0.4, "width": 1.0, "precision": "bf16", "dropout": 0.0,
        "augment": "crop-alternate", "zero_init_residual": True, "flip_test": True,
    },
}  # fmt: skip
ABOUT = {
    "quick": "a few epochs, to see it learn; sets nothing",
    "blog": "the recipe of the blog post that this project implements",
    "best": "what gives the most in 20 epochs of width 0.5",
    "resnet20": "ResNet-20; the paper trains it for 182 epochs, in steps of the rate",
    "gpu": "a recipe for a card; a trial on an H100, 2026-11-24, had 0.9092 on a JPEG copy",
}
# Flags that may differ between a run and its resumption: they change where it runs and what it says, not what it computes.
FREE = {
    "data", "sample", "device", "ranks", "rank_timeout", "threads", "out", "resume", "resume_with_changes",
    "record", "checkpoint_every", "eval", "predict", "flip_test", "trace", "preset",
    "watch", "tensorboard",
}  # fmt: skip
# The only flags that may stand beside these two: all else is as the checkpoint says.
BESIDE = {
    "eval": (
        "data", "sample", "batch_size", "device", "record", "precision", "ranks", "rank_timeout", "threads", "flip_test",
    ),
    "predict": ("device", "precision", "threads"),
}  # fmt: skip
# A flag, another one, and the choices of that beside which the first would do nothing.
IDLE = (
    ("crop_padding", "augment", ("none",)),
    ("momentum", "optimizer", ("adam", "adamw")),
    ("dropout", "variant", ("blog",)),
    ("variant", "model", MODELS[1:]),
    ("dropout", "model", MODELS[1:]),
)


def make_parser(description):
    """The command line, in groups; every help text ends in its default."""
    parser = Parser(
        prog="train_cifar.py",
        description=description,
        epilog=f"{_kinds()}\n\n{_presets()}",
        formatter_class=Formatter,
        allow_abbrev=False,
    )

    def group(title):
        options = parser.add_argument_group(title)
        return lambda flag, help, **kwargs: options.add_argument(flag, help=help, **kwargs)

    switch, yes_or_no = {"action": "store_true"}, {"action": argparse.BooleanOptionalAction, "default": False}
    add = group("data")
    add(
        "--data",
        "folder or archive to train on, see below; without it CIFAR-10 from the cache, or a download",
        type=path,
    )
    add("--sample", "train on the drawn shapes that need no download", **switch)
    add(
        "--image-size", "side of the pictures: those in class folders are read at it, others resized, bilinear",
        type=whole(1), default=32,
    )  # fmt: skip
    add(
        "--normalise",
        "subtract and divide by CIFAR-10's statistics, one half, or the training pictures' own (default: cifar for "
        "CIFAR-10 and drawn shapes, else data)",
        choices=(*NORMALISE, "data"),
    )
    add(
        "--augment", "random crop from reflected padding, and flip at random or every other epoch",
        choices=("none", "crop-flip", "crop-alternate"), default="crop-flip",
    )  # fmt: skip
    add("--crop-padding", "pixels of padding that a random crop is taken from", type=whole(0, 31), default=4)
    add = group("network")
    add("--model", "which network", choices=MODELS, default=MODELS[0])
    add("--variant", "which MobileNetV2", choices=VARIANTS, default="cifar")
    add("--width", "factor on the channel counts; 1 for a ResNet unless given", type=real("(0, 100]"), default=0.5)
    add("--dropout", "probability before the classifier (the blog variant has none)", type=real("[0, 1)"), default=0.2)
    add("--zero-init-residual", "set the weight of each residual branch's last batch norm to 0 at first", **yes_or_no)
    add = group("training")
    add(
        "--preset",
        "a set of defaults for the other flags, which win over it; see below",
        choices=PRESETS,
        default="quick",
    )
    add("--epochs", "passes over the training pictures", type=whole(1, 1_000_000), default=4)
    add("--batch-size", "pictures a step", type=whole(1), default=64)
    add("--optimizer", "update rule", choices=OPTIMIZERS, default="sgd")
    add("--lr", "largest learning rate", type=real("[0, 1e30]"), default=0.1)
    add(
        "--schedule", "how the learning rate changes from step to step", choices=schedule.SCHEDULES, default="one-cycle"
    )
    add("--momentum", "of SGD, by Nesterov; 0 turns it off", type=real("[0, 1)"), default=0.9)
    add("--weight-decay", "not on batch norm and biases", type=real("[0, 1e6]"), default=5e-4)
    add("--label-smoothing", "share of the target spread over all classes", type=real("[0, 1]"), default=0.1)
    add(
        "--ema", "decay of an average of the weights, which is then what is tested; 0 keeps none",
        type=real("[0, 1)"), default=0.0,
    )  # fmt: skip
    add("--seed", "of the split, the weights, the order, augmentation and dropout", type=whole(0), default=0)
    add = group("machine")
    add("--device", "where to compute", choices=("auto", "cpu", "cuda"), default="auto")
    add(
        "--precision", "on a GPU: tf32 rounds what matrix products multiply to 10 bits, bf16 stores activations in 16",
        choices=("float32", "tf32", "bf16"), default="float32",
    )  # fmt: skip
    add(
        "--ranks", "processes that share each batch, by MPI; auto: as many as fill this machine, one on a GPU",
        type=whole(1, 1024, "auto"), default="auto",
    )  # fmt: skip
    add(
        "--local-batch-norm", "batch norm over each rank's own pictures instead of the whole batch: other numbers",
        **yes_or_no,
    )  # fmt: skip
    add(
        "--rank-timeout", "longest wait for another rank, until the run stops and says which one did not come",
        type=whole(1), default=120, metavar="SECONDS",
    )  # fmt: skip
    add(
        "--record", "on a GPU: record a step once and replay it; --no-record launches every kernel from Python",
        **yes_or_no | {"default": True},
    )  # fmt: skip
    add("--threads", "CPU threads of each rank (default: its share of the cores)", type=whole(1, 1024))
    add = group("output")
    add(
        "--out", "folder of config.json, metrics.csv, last.npz, best.npz, curves.png, log.txt",
        type=path, default=Path("runs/cifar"),
    )  # fmt: skip
    add("--resume", "go on from the last checkpoint in --out, where there is one", **switch)
    add(
        "--resume-with-changes",
        "like --resume, but with other flags than the run began with, where the network stays the same", **switch,
    )  # fmt: skip
    add(
        "--checkpoint-every", "steps between checkpoints (default: at the end of every epoch)",
        type=whole(1), metavar="STEPS",
    )  # fmt: skip
    add(
        "--trace",
        "print what runs in a training step of the network, and how long it takes, before training",
        **switch,
    )
    add(
        "--watch",
        "serve a page that shows the run, to this machine alone, at a port of your choice or any that is free; its address "
        "is printed",
        nargs="?", const=0, type=whole(1, 65535), metavar="PORT",
    )  # fmt: skip
    add("--tensorboard", "write event files for TensorBoard too, into the folder tensorboard of --out", **switch)
    add = group("testing")
    add("--eval", "only test this checkpoint, class by class", type=path, metavar="CHECKPOINT")
    files = {"nargs": "+", "type": path, "metavar": "FILE"}
    add("--predict", "only say what pictures show: a checkpoint, then PNG or JPEG files", **files)
    add("--flip-test", "test with the mean of the logits for each picture and its mirror image", **yes_or_no)
    return parser


def parse(arguments, description):
    """The flags: built-in defaults, then the preset's, then what was given.

    Raises:
        UsageError: an unknown flag, a value out of its range, flags that another one makes meaningless.
    """
    parser = make_parser(description)
    first = Parser(add_help=False, allow_abbrev=False)  # what decides defaults, so that --help can show them
    first.add_argument("--preset")
    first.add_argument("--model")
    known = first.parse_known_args(arguments)[0]
    if known.model in MODELS[1:]:
        parser.set_defaults(width=1.0)  # the paper's
    if known.preset in PRESETS:
        parser.set_defaults(preset=known.preset, **PRESETS[known.preset])
    unset = object()
    names = vars(parser.parse_known_args([])[0])
    found, unknown = parser.parse_known_args(arguments, argparse.Namespace(**dict.fromkeys(names, unset)))
    if unknown:
        raise UsageError(did_you_mean(unknown[0], [*map(_flag, names)]))
    given = {name: value for name, value in vars(found).items() if value is not unset}
    args = argparse.Namespace(**{name: parser.get_default(name) for name in names} | given)
    _refuse_idle(args, given)
    if args.predict and len(args.predict) < 2:
        raise UsageError("--predict needs a checkpoint and at least one picture: --predict runs/cifar/best.npz cat.png")
    args.resume = args.resume or args.resume_with_changes
    here, out = (Path(os.path.realpath(place)) for place in (".", args.out))
    if not (args.resume or args.eval or args.predict) and out in (here, *here.parents):
        raise UsageError(f"--out {args.out}: no later run could move it aside, as you are in it: name another folder")
    return args


def network_title(args):
    """What the network is, in words."""
    if args.model == MODELS[0]:
        return f"MobileNetV2 {args.variant}, width {args.width}"
    return f"ResNet-{args.model.removeprefix('resnet')}, width {args.width}"


def flags_of(header):
    """The flags in a checkpoint's header that say what the network is and was fed with, checked as typed ones are.

    Raises:
        UsageError: something that a run's header has is missing, or no flag could have set it.
    """
    names = ("model", "variant", "width", "dropout", "image_size", "normalise", "seed")
    try:
        config, epoch = {"model": MODELS[0]} | header["config"], header["epoch"]
        texts = {"title": config["title"], "name": config["data"]["name"], "sha256": config["data"]["sha256"]}
        typed = [f"{_flag(name)}={config[name]}" for name in names]
    except (KeyError, TypeError) as error:
        raise UsageError(error if isinstance(error, KeyError) else "configuration") from None
    wrong = [key for key, text in texts.items() if not isinstance(text, str)] + ["epoch"] * (not isinstance(epoch, int))
    if wrong:
        raise UsageError(repr(wrong[0]))
    read = make_parser("").parse_args(typed)
    return {name: getattr(read, name) for name in names}


def _refuse_idle(args, given):
    """Refuse flags that were given beside one that makes them meaningless."""
    for mode, beside in BESIDE.items():
        if mode in given:
            for name in given:
                if name not in (mode, *beside):
                    raise UsageError(
                        f"{_flag(name)} cannot go with --{mode}, which takes all else from the checkpoint; these can: "
                        + ", ".join(map(_flag, beside))
                    )
    if args.data and args.sample:
        raise UsageError("--data and --sample exclude each other: choose the pictures in a folder or the drawn ones")
    for name, other, values in IDLE:
        if given.get(name) and getattr(args, other) in values:
            raise UsageError(
                f"{_flag(name)} does nothing with {_flag(other)} {getattr(args, other)}: leave out one of them"
            )


def _flag(name):
    return "--" + name.replace("_", "-")


def _kinds():
    """What can be given as --data, for the end of --help."""
    wrap = textwrap.TextWrapper(80, 2 * " ", 8 * " ", break_on_hyphens=False).wrap
    return "\n".join(["data:", *(line for reader in READERS for line in wrap(reader.what))])


def _presets():
    """What each preset sets, as flags, for the end of --help."""
    lines = ["presets:"]
    wrap = textwrap.TextWrapper(80, 8 * " ", 8 * " ", break_on_hyphens=False).wrap
    for name, values in PRESETS.items():
        flags = [_flag(key) if value is True else f"{_flag(key)}\xa0{value}" for key, value in values.items()]
        lines.append(f"  {name:<6}{ABOUT[name]}")
        lines += [line.replace("\xa0", " ") for line in wrap(" ".join(flags))]
    return "\n".join(lines)
