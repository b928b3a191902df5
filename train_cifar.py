#!/usr/bin/env python3
"""Train MobileNetV2 on CIFAR-10, every gradient derived by hand.

Exit codes: 0 done, 1 the loss diverged, 2 something asked for cannot be had, 130 and 143 stopped by a signal (resumable).
"""

import argparse
import functools
import json
import sys
from pathlib import Path

import numpy as np

import scratchnet as sn
from models import MobileNetV2
from models.mobilenetv2 import VARIANTS
from scratchnet.array import resolve_device
from scratchnet.trace import table, trace
from scratchnet.training import cifar10, optim, schedule
from scratchnet.training.batches import Batches, split
from scratchnet.training.checkpoint import CheckpointError, load, load_latest
from scratchnet.training.console import Console
from scratchnet.training.folder import FolderError, RunFolder
from scratchnet.training.shapes import draw_shapes
from scratchnet.training.trainer import BEST, Diverged, Interrupted, Trainer, count_parameters, evaluate

OPTIMIZERS = ("sgd", "adam", "adamw")
NORMALISE = {"cifar": (cifar10.MEAN, cifar10.STD), "half": ((0.5,) * 3, (0.5,) * 3)}
VALIDATION = 0.1  # of the training pictures
PRESETS = {
    # a few epochs, to see it learn
    "quick": {},
    # the recipe of the blog post that this project implements
    "blog": {
        "variant": "blog", "image_size": 96, "normalise": "half", "epochs": 15, "batch_size": 256, "augment": "none",
        "optimizer": "adam", "lr": 0.01, "schedule": "constant", "momentum": 0.0, "weight_decay": 0.0, "label_smoothing": 0.0,
    },
    # what gives the most in 20 epochs of width 0.5
    "best": {"epochs": 20, "lr": 0.2, "label_smoothing": 0.1},
}  # fmt: skip
# Flags that may differ between a run and its resumption: they change where it runs and what it says, not what it computes.
FREE = {"data", "sample", "device", "threads", "out", "resume", "checkpoint_every", "eval", "trace", "preset"}


class UsageError(ValueError):
    """The command asks for something that cannot be had; the message says what would be right."""


def make_parser():
    """The command line, in groups; every help text ends in its default."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )

    def group(title):
        options = parser.add_argument_group(title)

        def add(flag, help, **kwargs):
            shown = "" if kwargs.get("action") or kwargs.get("default") is None else " (default: %(default)s)"
            options.add_argument(flag, help=help + shown, **kwargs)

        return add

    add = group("data")
    add("--data", "folder with CIFAR-10's binary batches, or their archive (default: the cache, else a download)", type=Path)
    add("--sample", "train on the drawn shapes that need no download", action="store_true")
    add("--image-size", "resize the pictures to this side, bilinear", type=int, default=32)
    add("--normalise", "subtract and divide by CIFAR-10's statistics, or by one half", choices=NORMALISE, default="cifar")
    add("--augment", "random crop from 4 reflected pixels of padding, and flip", choices=("none", "crop-flip"), default="crop-flip")
    add = group("network")
    add("--variant", "which MobileNetV2", choices=VARIANTS, default="cifar")
    add("--width", "factor on the channel counts", type=float, default=0.5)
    add("--dropout", "probability before the classifier (the blog variant has none)", type=float, default=0.2)
    add = group("training")
    add("--preset", "a set of defaults for the other flags, which win over it", choices=PRESETS, default="quick")
    add("--epochs", "passes over the training pictures", type=int, default=8)
    add("--batch-size", "pictures a step", type=int, default=64)
    add("--optimizer", "update rule", choices=OPTIMIZERS, default="sgd")
    add("--lr", "largest learning rate", type=float, default=0.1)
    add("--schedule", "how the learning rate changes from step to step", choices=schedule.SCHEDULES, default="one-cycle")
    add("--momentum", "of SGD, by Nesterov; 0 turns it off", type=float, default=0.9)
    add("--weight-decay", "not on batch norm and biases", type=float, default=5e-4)
    add("--label-smoothing", "share of the target spread over all classes", type=float, default=0.0)
    add("--seed", "of the split, the weights, the order, augmentation and dropout", type=int, default=0)
    add = group("machine")
    add("--device", "where to compute", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", "CPU threads (default: the cores that this process may use)", type=int)
    add = group("output")
    add("--out", "folder of config.json, metrics.csv, last.npz, best.npz, curves.png, log.txt", type=Path, default=Path("runs/cifar"))
    add("--resume", "go on from the last checkpoint in --out, where there is one", action="store_true")
    add("--checkpoint-every", "steps between checkpoints (default: at the end of every epoch)", type=int, metavar="STEPS")
    add("--eval", "only test this checkpoint", type=Path, metavar="CHECKPOINT")
    add("--trace", "print the network layer by layer before training", action="store_true")
    return parser


def parse(arguments):
    """The flags: built-in defaults, then the preset's, then what was given."""
    parser = make_parser()
    preset = parser.parse_known_args(arguments)[0].preset
    parser.set_defaults(**PRESETS[preset])
    args = parser.parse_args(arguments)
    for name in ("epochs", "batch_size", "image_size", "threads", "checkpoint_every"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.seed < 0:
        raise UsageError(f"--seed must be at least 0, got {args.seed}")
    return args


def load_data(args, console):
    """(train, test, where they come from): --data, then the cache, then the download, then the drawn sample."""
    if args.data and args.sample:
        raise UsageError("--data and --sample exclude each other: choose the pictures in a folder or the drawn ones")
    if args.data:
        return *cifar10.load_cifar10(args.data), str(args.data)
    if not args.sample:
        try:
            place = cifar10.find_or_download()
            return *cifar10.load_cifar10(place), f"the cache, {place}"
        except cifar10.DataError as error:
            console.say(
                f"!!! NO CIFAR-10: {error}. TRAINING ON DRAWN SHAPES INSTEAD: ten classes of generated pictures, whose "
                "accuracy says nothing about CIFAR-10. Give its folder or archive with --data for the real thing."
            )
    return *draw_shapes(seed=args.seed), "drawn by scratchnet/training/shapes.py"


def make_model(config, rng):
    """The network that a configuration asks for."""
    return MobileNetV2(10, config["width"], config["variant"], config["dropout"], rng=rng)


def make_optimizer(args, model):
    """The optimizer that the flags ask for."""
    parameters = list(model.named_parameters())
    if args.optimizer == "sgd":
        return optim.SGD(parameters, args.lr, args.momentum, args.momentum > 0, args.weight_decay)
    return {"adam": optim.Adam, "adamw": optim.AdamW}[args.optimizer](parameters, args.lr, weight_decay=args.weight_decay)


def make_schedule(args, total):
    """Step -> learning rate, for a run of `total` steps; the cosine warms up for a twentieth of them."""
    options = {"warmup": total // 20} if args.schedule == "cosine" else {}
    return functools.partial(schedule.SCHEDULES[args.schedule], total=total, lr=args.lr, **options)


def make_config(args, dataset):
    """What decides the result of a run: flags, data, and how to name it."""
    config = {key: value for key, value in vars(args).items() if key not in FREE}
    config["data"] = {"name": dataset.name, "sha256": cifar10.fingerprint(dataset)}
    config["title"] = f"MobileNetV2 {args.variant}, width {args.width}, on {dataset.name}, seed {args.seed}"
    return config


def main(arguments=None):
    """Run the command; returns the exit code."""
    console = Console()
    try:
        args = parse(arguments)
        device = resolve_device(args.device)
        if args.threads:
            sn.set_num_threads(args.threads)
        return test_checkpoint(args, device, console) if args.eval else train(args, device, console)
    except (UsageError, cifar10.DataError, CheckpointError, FolderError, sn.DeviceError) as error:
        print(f"train_cifar.py: error: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        console.say(f"stopped: {error}")
        return 1
    except Interrupted as error:
        console.say(f"{error}; the same command with --resume goes on from here")
        return error.exit_code


def train(args, device, console):
    """Train, then test the best checkpoint once."""
    data, test, source = load_data(args, console)
    folder = RunFolder(args.out, keep=args.resume)
    console.log_to(folder.path / "log.txt")
    if folder.moved:
        console.say(f"the earlier run in {args.out} was moved to {folder.moved}")
    config = make_config(args, data)
    try:
        rng = np.random.default_rng(args.seed)
        model = make_model(config, rng).to(device)
        criterion = sn.CrossEntropyLoss(args.label_smoothing)
        optimizer = make_optimizer(args, model)
        pictures = functools.partial(make_batches, args, seed=args.seed)
        training, validation = split(data, VALIDATION, args.seed)
        batches = pictures(training, augment=args.augment != "none", drop_last=True), pictures(validation, shuffle=False)
        rate = make_schedule(args, total=args.epochs * len(batches[0]))
        rate(0)
        layers = trace(model, (3, args.image_size, args.image_size))
    except ValueError as error:
        raise UsageError(str(error)) from error
    trainer = Trainer(
        model, criterion, optimizer, rate, *batches, epochs=args.epochs, out=folder.path, config=config, generator=rng,
        console=console, device=device, checkpoint_every=args.checkpoint_every,
    )  # fmt: skip
    if args.resume:
        resume(trainer, args, console)
    (folder.path / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    macs = sum(step.multiply_adds for step in layers)
    console.say(f"data      {data.name}, from {source}")
    sizes = f"{len(training.labels):,} train + {len(validation.labels):,} validation + {len(test.labels):,} test"
    console.say(f"          {sizes} pictures, at {args.image_size}×{args.image_size}; augmentation: {args.augment}")
    console.say(
        f"network   MobileNetV2 {args.variant}, width {args.width}: {count_parameters(model):,} parameters, "
        f"{macs / 1e6:.1f} million multiply-adds a picture"
    )
    console.say(
        f"training  {args.epochs} epochs of {len(batches[0])} steps, batch {args.batch_size}, {args.optimizer}, "
        f"lr {args.lr:g} {args.schedule}, weight decay {args.weight_decay:g}, label smoothing {args.label_smoothing:g}"
    )
    threads = f"{sn.get_num_threads()} threads, " if device == "cpu" else ""
    console.say(f"machine   {device}, {threads}NumPy {np.__version__}, seed {args.seed}")
    console.say(f"output    {folder.path}")
    if args.trace:
        console.say(table(layers))
    trainer.run()
    arrays, header = load(folder.path / BEST)
    model.load_state_dict(parameters_of(arrays))
    loss, accuracy = evaluate(model, sn.CrossEntropyLoss(), pictures(test, shuffle=False), device)
    result = {"data": config["data"], "best_epoch": header["epoch"], "test_loss": loss, "test_accuracy": accuracy}
    (folder.path / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    console.say(f"tested once, on {len(test.labels):,} pictures of {data.name}: epoch {header['epoch']}, the best by validation")
    console.say(f"Test loss: {loss:.4f}")
    console.say(f"Test accuracy: {accuracy:.4f}")
    return 0


def make_batches(args, dataset, **options):
    """Batches of a data set, as the flags ask for."""
    mean, std = NORMALISE[args.normalise]
    return Batches(dataset, args.batch_size, mean=mean, std=std, image_size=args.image_size, **options)


def parameters_of(arrays):
    """The network's part of a checkpoint."""
    return {key.removeprefix("model/"): value for key, value in arrays.items() if key.startswith("model/")}


def resume(trainer, args, console):
    """Go on from the last checkpoint, if it is of this very command."""
    found = load_latest(args.out, console.say)
    if found is None:
        console.say(f"nothing to resume in {args.out}: starting from the beginning")
        return
    arrays, header, path = found
    before = header["config"]
    changed = [key for key in trainer.config if trainer.config[key] != before.get(key) and key != "title"]
    if changed:
        differences = "; ".join(f"{key} was {before.get(key)!r}, now {trainer.config[key]!r}" for key in changed)
        raise UsageError(f"--resume: {path} is of another run: {differences}. Give the same flags, or another --out")
    trainer.restore(arrays, header)
    console.say(f"resuming {path}: epoch {trainer.epoch + 1}, after {trainer.batch} of its {len(trainer.train)} steps")


def test_checkpoint(args, device, console):
    """Test a checkpoint on the pictures that it was made for."""
    arrays, header = load(args.eval)
    try:
        config = header["config"]
        args.sample = args.sample or (not args.data and config["data"]["name"] == "drawn shapes")
        for key in ("variant", "width", "dropout", "image_size", "normalise", "seed"):
            setattr(args, key, config[key])
    except KeyError as error:
        raise CheckpointError(f"{args.eval} is a checkpoint of something else: its header has no {error}") from None
    _, test, source = load_data(args, console)
    model = make_model(config, np.random.default_rng(0)).to(device)
    try:
        model.load_state_dict(parameters_of(arrays))
    except ValueError as error:
        raise CheckpointError(f"{args.eval} does not fit its own configuration: {error}") from error
    loss, accuracy = evaluate(model, sn.CrossEntropyLoss(), make_batches(args, test, seed=0, shuffle=False), device)
    console.say(f"checkpoint  {args.eval}: {config['title']}, epoch {header['epoch']}")
    console.say(f"data        {len(test.labels):,} test pictures of {test.name}, from {source}")
    console.say(f"Test loss: {loss:.4f}")
    console.say(f"Test accuracy: {accuracy:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
