"""The command line of train_cifar.py: its flags in groups, each with its default, and the presets."""

import argparse
from pathlib import Path

from scratchnet.data import cifar10
from scratchnet.training import schedule

VARIANTS = ("imagenet", "cifar", "blog")
OPTIMIZERS = ("sgd", "adam", "adamw")
NORMALISE = {  # mean and std of each channel
    "cifar": (cifar10.MEAN, cifar10.STD),
    "half": ((0.5,) * 3, (0.5,) * 3),
}
PRESETS: dict[str, dict] = {
    # a few epochs, to see it learn
    "quick": {},
    # the recipe of the blog post that this project implements
    "blog": {
        "variant": "blog", "image_size": 96, "normalise": "half", "epochs": 15, "batch_size": 256, "augment": "none",
        "optimizer": "adam", "lr": 0.01, "schedule": "constant", "momentum": 0.0, "weight_decay": 0.0,
        "label_smoothing": 0.0, "dropout": 0.0,
    },
    # what gives the most in 20 epochs of width 0.5
    "best": {
        "epochs": 20, "dropout": 0.0, "augment": "crop-alternate", "zero_init_residual": True, "flip_test": True,
    },
}  # fmt: skip
# Flags that may differ between a run and its resumption: they change where it runs and what it says, not what it computes.
FREE = {
    "data", "sample", "device", "threads", "out", "resume", "resume_with_changes", "checkpoint_every", "eval", "predict",
    "flip_test", "trace", "preset",
}  # fmt: skip


class UsageError(ValueError):
    """The command asks for something that cannot be had; the message says what would be right."""


def make_parser(description):
    """The command line, in groups; every help text ends in its default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )

    def group(title):
        options = parser.add_argument_group(title)

        def add(flag, help, **kwargs):
            shown = "" if kwargs.get("action") or kwargs.get("default") is None else " (default: %(default)s)"
            options.add_argument(flag, help=help + shown, **kwargs)

        return add

    add = group("data")
    add(
        "--data",
        "folder with CIFAR-10's binary batches, or their archive (default: the cache, else a download)",
        type=Path,
    )
    add("--sample", "train on the drawn shapes that need no download", action="store_true")
    add("--image-size", "resize the pictures to this side, bilinear", type=int, default=32)
    add(
        "--normalise",
        "subtract and divide by CIFAR-10's statistics, or by one half",
        choices=NORMALISE,
        default="cifar",
    )
    add(
        "--augment",
        "random crop from reflected padding, and flip at random or every other epoch",
        choices=("none", "crop-flip", "crop-alternate"),
        default="crop-flip",
    )
    add("--crop-padding", "pixels of padding that a random crop is taken from", type=int, default=4)
    add = group("network")
    add("--variant", "which MobileNetV2", choices=VARIANTS, default="cifar")
    add("--width", "factor on the channel counts", type=float, default=0.5)
    add("--dropout", "probability before the classifier (the blog variant has none)", type=float, default=0.2)
    add(
        "--zero-init-residual",
        "start every shortcut's other way at 0",
        action=argparse.BooleanOptionalAction,
        default=False,
    )
    add = group("training")
    add("--preset", "a set of defaults for the other flags, which win over it", choices=PRESETS, default="quick")
    add("--epochs", "passes over the training pictures", type=int, default=4)
    add("--batch-size", "pictures a step", type=int, default=64)
    add("--optimizer", "update rule", choices=OPTIMIZERS, default="sgd")
    add("--lr", "largest learning rate", type=float, default=0.1)
    add(
        "--schedule", "how the learning rate changes from step to step", choices=schedule.SCHEDULES, default="one-cycle"
    )
    add("--momentum", "of SGD, by Nesterov; 0 turns it off", type=float, default=0.9)
    add("--weight-decay", "not on batch norm and biases", type=float, default=5e-4)
    add("--label-smoothing", "share of the target spread over all classes", type=float, default=0.1)
    add(
        "--ema",
        "decay of an average of the weights, which is then what is tested; 0 keeps none",
        type=float,
        default=0.0,
    )
    add("--seed", "of the split, the weights, the order, augmentation and dropout", type=int, default=0)
    add = group("machine")
    add("--device", "where to compute", choices=("auto", "cpu", "cuda"), default="auto")
    add(
        "--precision",
        "on a GPU: tf32 rounds what matrix products multiply to 10 bits, bf16 stores activations in 16",
        choices=("float32", "tf32", "bf16"),
        default="float32",
    )
    add("--threads", "CPU threads (default: the cores that this process may use)", type=int)
    add = group("output")
    add(
        "--out",
        "folder of config.json, metrics.csv, last.npz, best.npz, curves.png, log.txt",
        type=Path,
        default=Path("runs/cifar"),
    )
    add("--resume", "go on from the last checkpoint in --out, where there is one", action="store_true")
    add(
        "--resume-with-changes",
        "like --resume, but with other flags than the run began with, where the network stays the same",
        action="store_true",
    )
    add(
        "--checkpoint-every",
        "steps between checkpoints (default: at the end of every epoch)",
        type=int,
        metavar="STEPS",
    )
    add("--trace", "print the network layer by layer before training", action="store_true")
    add = group("testing")
    add("--eval", "only test this checkpoint, class by class", type=Path, metavar="CHECKPOINT")
    add(
        "--predict",
        "only say what pictures show: a checkpoint, then PNG or JPEG files",
        nargs="+",
        type=Path,
        metavar="FILE",
    )
    add(
        "--flip-test",
        "test with the mean of the logits for each picture and its mirror image",
        action=argparse.BooleanOptionalAction,
        default=False,
    )
    return parser


def parse(arguments, description):
    """The flags: built-in defaults, then the preset's, then what was given.

    Raises:
        UsageError: a number that cannot be; what argparse finds itself ends the program with exit code 2.
    """
    parser = make_parser(description)
    preset = parser.parse_known_args(arguments)[0].preset
    parser.set_defaults(**PRESETS[preset])
    args = parser.parse_args(arguments)
    for name in ("epochs", "batch_size", "image_size", "threads", "checkpoint_every"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.predict and len(args.predict) < 2:
        raise UsageError("--predict needs a checkpoint and at least one picture: --predict runs/cifar/best.npz cat.png")
    if not 0 <= args.ema < 1:
        raise UsageError(f"--ema must be in [0, 1), got {args.ema:g}")
    if not 0 <= args.crop_padding < 32:
        raise UsageError(f"--crop-padding must be 0 to 31 pixels, got {args.crop_padding}")
    args.resume = args.resume or args.resume_with_changes
    if args.seed < 0:
        raise UsageError(f"--seed must be at least 0, got {args.seed}")
    return args
