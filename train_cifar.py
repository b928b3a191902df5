#!/usr/bin/env python3
"""Train MobileNetV2 on CIFAR-10, every gradient derived by hand.

Exit codes: 0 done, 1 the loss diverged or a file could not be written, 2 something asked for cannot be had, 130 and 143
stopped by a signal; a stopped run is resumable.
"""

import functools
import json
import sys

import numpy as np

import scratchnet as sn
from models import MobileNetV2
from scratchnet.array import resolve_device
from scratchnet.trace import table, trace
from scratchnet.training import cifar10, optim, schedule
from scratchnet.training.batches import Batches, split
from scratchnet.training.checkpoint import CheckpointError, load, load_latest
from scratchnet.training.console import Console
from scratchnet.training.flags import FREE, NORMALISE, UsageError, parse
from scratchnet.training.folder import FolderError, RunFolder
from scratchnet.training.shapes import draw_shapes
from scratchnet.training.trainer import BEST, Diverged, Interrupted, Trainer, evaluate

VALIDATION = 0.1  # of the training pictures


def main(arguments=None):
    """Run the command; returns the exit code."""
    console = Console()
    try:
        args = parse(arguments, __doc__)
        device = resolve_device(args.device)
        if args.threads:
            sn.set_num_threads(args.threads)
        if args.eval:
            return test_checkpoint(args, device, console)
        data, test, source = load_data(args, console)
        with RunFolder(args.out, keep=args.resume) as folder:
            console.log_to(folder.path / "log.txt")
            if folder.moved:
                console.say(f"the earlier run in {args.out} was moved to {folder.moved}")
            return train(args, data, test, source, device, console)
    except (UsageError, cifar10.DataError, CheckpointError, FolderError, sn.DeviceError) as error:
        print(f"train_cifar.py: error: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        console.say(f"stopped: {error}")
        return 1
    except OSError as error:
        print(f"train_cifar.py: error: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except Interrupted as error:
        console.say(f"{error}; the same command with --resume goes on from here")
        return error.exit_code


def train(args, data, test, source, device, console):
    """Train, then test the best checkpoint, once."""
    trainer = make_trainer(args, data, device, console)
    if args.resume:
        resume(trainer, args, console)
    (args.out / "config.json").write_text(json.dumps(trainer.config, indent=1) + "\n")
    say_header(trainer, args, data, test, source)
    trainer.run()
    arrays, header = load(args.out / BEST)
    trainer.model.load_state_dict(parameters_of(arrays))
    loss, accuracy = evaluate(trainer.model, sn.CrossEntropyLoss(), make_batches(args, test, shuffle=False), device)
    result = {
        "data": trainer.config["data"],
        "best_epoch": header["epoch"],
        "test_loss": loss,
        "test_accuracy": accuracy,
    }
    (args.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    console.say(
        f"tested once, on {len(test.labels):,} pictures of {test.name}: epoch {header['epoch']}, the best by validation"
    )
    say_result(console, loss, accuracy)
    return 0


def test_checkpoint(args, device, console):
    """Test a checkpoint on the pictures that it was made for."""
    arrays, header = load(args.eval)
    try:
        config = header["config"]
        args.sample = args.sample or (not args.data and config["data"]["name"] == "drawn shapes")
        for key in ("variant", "width", "dropout", "image_size", "normalise", "seed"):
            setattr(args, key, config[key])
        epoch, title = header["epoch"], config["title"]
    except KeyError as error:
        raise CheckpointError(f"{args.eval} is a checkpoint of something else: its header has no {error}") from None
    _, test, source = load_data(args, console)
    model = make_model(args, np.random.default_rng(0)).to(device)
    try:
        model.load_state_dict(parameters_of(arrays))
    except ValueError as error:
        raise CheckpointError(f"{args.eval} does not fit its own configuration: {error}") from error
    loss, accuracy = evaluate(model, sn.CrossEntropyLoss(), make_batches(args, test, shuffle=False), device)
    console.say(f"checkpoint  {args.eval}: {title}, epoch {epoch}")
    console.say(f"data        {len(test.labels):,} test pictures of {test.name}, {source}")
    say_result(console, loss, accuracy)
    return 0


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


# What a command asks for, made -------------------------------------------------------------------------------------------


def load_data(args, console):
    """(train, test, where they come from): --data, then the cache, then the download, then the drawn sample."""
    if args.data and args.sample:
        raise UsageError("--data and --sample exclude each other: choose the pictures in a folder or the drawn ones")
    if args.data:
        return *cifar10.load_cifar10(args.data), f"from {args.data}"
    if not args.sample:
        try:
            place = cifar10.find_or_download()
            return *cifar10.load_cifar10(place), f"from {place}"
        except cifar10.DataError as error:
            console.say(
                f"!!! NO CIFAR-10: {error}. TRAINING ON DRAWN SHAPES INSTEAD: ten classes of generated pictures, whose "
                "accuracy says nothing about CIFAR-10. Give its folder or archive with --data for the real thing."
            )
    return *draw_shapes(seed=args.seed), "generated (scratchnet/training/shapes.py)"


def make_trainer(args, data, device, console):
    """The whole run that the flags ask for; what they ask in vain is a UsageError."""
    try:
        rng = np.random.default_rng(args.seed)
        model = make_model(args, rng).to(device)
        training, validation = split(data, VALIDATION, args.seed)
        batches = (
            make_batches(args, training, augment=args.augment != "none", drop_last=True),
            make_batches(args, validation, shuffle=False),
        )
        rate = make_schedule(args, total=args.epochs * len(batches[0]))
        rate(0)  # a bad rate is refused here
        trace(model, (3, args.image_size, args.image_size))  # and a picture too small for the network
        criterion, optimizer = sn.CrossEntropyLoss(args.label_smoothing), make_optimizer(args, model)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Trainer(
        model, criterion, optimizer, rate, *batches, epochs=args.epochs, out=args.out, config=make_config(args, data),
        generator=rng, console=console, device=device, checkpoint_every=args.checkpoint_every,
    )  # fmt: skip


def make_model(args, rng):
    """MobileNetV2 for ten classes."""
    return MobileNetV2(10, args.width, args.variant, args.dropout, rng=rng)


def make_batches(args, dataset, **options):
    """Batches of a data set."""
    mean, std = NORMALISE[args.normalise]
    size = args.image_size
    return Batches(dataset, args.batch_size, seed=args.seed, mean=mean, std=std, image_size=size, **options)


def make_optimizer(args, model):
    """The update rule, with Nesterov's momentum for SGD."""
    parameters = list(model.named_parameters())
    if args.optimizer == "sgd":
        return optim.SGD(parameters, args.lr, args.momentum, args.momentum > 0, args.weight_decay)
    return {"adam": optim.Adam, "adamw": optim.AdamW}[args.optimizer](
        parameters, args.lr, weight_decay=args.weight_decay
    )


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


def parameters_of(arrays):
    """The network's part of a checkpoint."""
    return {key.removeprefix("model/"): value for key, value in arrays.items() if key.startswith("model/")}


# What a command says -----------------------------------------------------------------------------------------------------


def say_header(trainer, args, data, test, source):
    """What is about to be trained, on what, where."""
    say = trainer.console.say
    counts = [len(part.dataset.labels) for part in (trainer.train, trainer.validation)]
    layers = trace(trainer.model, (3, args.image_size, args.image_size))
    parameters, macs = (sum(getattr(step, what) for step in layers) for what in ("parameters", "multiply_adds"))
    threads = f", {sn.get_num_threads()} threads" if trainer.device == "cpu" else ""
    say(f"data      {data.name}, {source}")
    say(f"          {counts[0]:,} train + {counts[1]:,} validation + {len(test.labels):,} test pictures")
    say(f"          at {args.image_size}×{args.image_size}, augmentation {args.augment}")
    say(f"network   MobileNetV2 {args.variant}, width {args.width}, {parameters:,} parameters")
    say(f"          {macs / 1e6:.1f} million multiply-adds a picture")
    say(f"training  {args.epochs} epochs of {len(trainer.train)} steps, {args.batch_size} pictures each")
    say(f"          {args.optimizer}, learning rate {args.lr:g} {args.schedule}, weight decay {args.weight_decay:g}")
    say(f"          label smoothing {args.label_smoothing:g}, dropout {args.dropout:g}")
    say(f"machine   {trainer.device}{threads}, NumPy {np.__version__}, seed {args.seed}")
    say(f"output    {args.out}")
    if args.trace:
        say(table(layers))


def say_result(console, loss, accuracy):
    """The last two lines of a run."""
    console.say(f"Test loss: {loss:.4f}")
    console.say(f"Test accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    sys.exit(main())
