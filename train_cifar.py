#!/usr/bin/env python3
"""Train MobileNetV2 on CIFAR-10, every gradient derived by hand.

Exit codes: 0 done; 1 a number was no longer finite, memory ran out, or a file could not be written; 2 something asked for
cannot be had; 130 and 143 stopped by a signal: the same command with --resume goes on.
"""

import sys

import numpy as np

import scratchnet as sn
from models import MobileNetV2
from scratchnet.array import bfloat16_dtype, resolve_device, use_tf32
from scratchnet.data import cifar10, shapes
from scratchnet.data.pictures import PictureError, read_pictures
from scratchnet.data.shapes import draw_shapes
from scratchnet.program.console import Console
from scratchnet.program.flags import UsageError, parse
from scratchnet.program.folder import FolderError, RunFolder
from scratchnet.program.memory import bytes_per_picture, out_of_memory, room
from scratchnet.program.report import say_header, say_result
from scratchnet.program.resume import check_config, resume
from scratchnet.program.setup import make_augmentation, make_batches, make_config, make_optimizer, make_schedule
from scratchnet.trace import trace
from scratchnet.training.atomic import write_json
from scratchnet.training.average import WeightAverage
from scratchnet.training.batches import split
from scratchnet.training.checkpoint import CheckpointError, load, part
from scratchnet.training.evaluation import evaluate
from scratchnet.training.signals import Interrupted
from scratchnet.training.trainer import Diverged, Trainer

VALIDATION = 0.1  # of the training pictures


def main(arguments=None):
    """Run the command; returns the exit code."""
    console = Console()
    try:
        args = parse(arguments, __doc__)
        device = resolve_device(args.device)
        set_precision(args.precision, device)
        if args.threads:
            sn.set_num_threads(args.threads)
        if args.eval:
            return test_checkpoint(args, device, console)
        if args.predict:
            return predict(args, device, console)
        data, test, source = load_data(args, console)
        with RunFolder(args.out, keep=args.resume) as folder:
            console.log_to(folder.path / "log.txt")
            if folder.moved:
                console.say(f"the earlier run in {args.out} was moved to {folder.moved}")
            return train(folder, args, data, test, source, device, console)
    except (UsageError, cifar10.DataError, CheckpointError, FolderError, PictureError, sn.DeviceError) as error:
        console.error(f"train_cifar.py: error: {error}")
        return 2
    except Diverged as error:
        console.say(f"stopped: {error}")
        return 1
    except MemoryError as error:
        console.error(f"train_cifar.py: error: {str(error) or 'out of memory'}")
        return 1
    except OSError as error:
        console.error(f"train_cifar.py: error: cannot use {error.filename}: {error.strerror}")
        return 1
    except Interrupted as error:
        console.say(f"{error}; the same command with --resume goes on from here")
        return error.exit_code
    except KeyboardInterrupt:  # before the first step, or while the test runs
        console.say("stopped by SIGINT")
        return 130


def set_precision(precision, device):
    """How exact matrix products and activations are; on a CPU they always are float32."""
    if device == "cuda":
        use_tf32(precision == "tf32")
        if precision == "bf16":
            bfloat16_dtype()
    elif precision != "float32":
        raise UsageError(f"--precision {precision} needs a GPU: use --device cuda, or --precision float32")


def train(folder, args, data, test, source, device, console):
    """Train, then test the best checkpoint, once."""
    trainer = make_trainer(args, data, device, console)
    trainer.record.check_folder = folder.check
    if args.resume:
        resume(trainer, args, console)
    write_json(args.out / "config.json", trainer.config, folder.check)
    if trainer.epoch < trainer.epochs:  # a result is there only once this run has one
        folder.check()
        for path in (args.out / "result.json", args.out / "confusion.png"):
            if path.exists():
                path.unlink()
    say_header(trainer, args, data, test, source)
    before = room()
    try:
        trainer.run()
    except MemoryError as error:
        needs = bytes_per_picture(trainer.model, (3, args.image_size, args.image_size))
        raise MemoryError(out_of_memory(error, args.batch_size, needs, before)) from None
    arrays, header = trainer.best_state()
    best = trainer.record.best["epoch"]
    trainer.model.load_state_dict(weights_of(arrays))
    result = evaluate_test(trainer.model, args, test, device)
    report = {
        "data": trainer.config["data"],
        "tested_epoch": header["epoch"],
        "best_epoch": best or None,  # None: no best checkpoint was left
        "best_sha256": header["checkpoint"]["sha256"] if best else None,
        "flip_test": args.flip_test,
        "test_loss": result.loss,
        "test_accuracy": result.accuracy,
        "class_accuracy": {  # null where no picture is of the class: JSON has no NaN
            name: None if np.isnan(share) else float(share)
            for name, share in zip(test.classes, result.class_accuracy, strict=True)
        },
    }
    write_json(args.out / "result.json", report, folder.check)
    which = "the best by validation" if best else "the last"
    console.say(f"tested once, on {len(test.labels):,} pictures of {test.name}: epoch {header['epoch']}, {which}")
    say_result(console, args, test, result, args.out / "confusion.png", trainer.config["title"])
    return 0


def test_checkpoint(args, device, console):
    """Test a checkpoint on the pictures that it was made for."""
    model, header = load_model(args.eval, args, device)
    config = header["config"]
    args.sample = args.sample or (not args.data and config["data"]["name"] == "drawn shapes")
    _, test, source = load_data(args, console)
    console.say(f"checkpoint  {args.eval}: {config['title']}, epoch {header['epoch']}")
    console.say(f"            {'averaged weights' if config.get('ema') else 'weights as they were'}")
    console.say(f"data        {len(test.labels):,} test pictures of {test.name}, {source}")
    result = evaluate_test(model, args, test, device)
    say_result(console, args, test, result, args.eval.with_suffix(".confusion.png"), config["title"])
    return 0


def predict(args, device, console):
    """Say what each picture shows: the three likeliest classes."""
    path, *pictures = args.predict
    model, header = load_model(path, args, device)
    classes = cifar10.CLASSES if header["config"]["data"]["name"] != "drawn shapes" else shapes.CLASSES
    images = read_pictures(pictures)
    data = cifar10.Dataset(images, np.zeros(len(images), np.int64), classes, "pictures")
    model.eval()
    for (x, _), name in zip(make_batches(args, data, shuffle=False, batch_size=1).epoch(0), pictures, strict=True):
        logits = sn.to_device(model(sn.to_device(x, device)), "cpu")[0].astype(np.float64)
        share = np.exp(logits - logits.max())
        share /= share.sum()
        best = np.argsort(-share, kind="stable")[:3]
        console.say(f"{name}: " + ", ".join(f"{classes[k]} {100 * share[k]:.1f} %" for k in best))
    return 0


def load_model(path, args, device):
    """(network, header) of a checkpoint; the flags that say what it was fed with are set to its own."""
    arrays, header = load(path)
    check_config(path, arrays, header)
    for key in ("variant", "width", "dropout", "image_size", "normalise", "seed"):
        setattr(args, key, header["config"][key])
    model = make_model(args, np.random.default_rng(0)).to(device)
    try:
        model.load_state_dict(weights_of(arrays))
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit its own configuration: {error}") from error
    return model, header


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
    return *draw_shapes(seed=args.seed), "generated (scratchnet/data/shapes.py)"


def make_trainer(args, data, device, console):
    """The whole run that the flags ask for; what they ask in vain is a UsageError."""
    try:
        rng = np.random.default_rng(args.seed)
        model = make_model(args, rng).to(device)
        training, validation = split(data, VALIDATION, args.seed)
        batches = (
            make_batches(args, training, device=device, drop_last=True, **make_augmentation(args)),
            make_batches(args, validation, shuffle=False, device=device),
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
        average=WeightAverage(model, args.ema) if args.ema else None,
    )  # fmt: skip


def make_model(args, rng):
    """MobileNetV2 for ten classes."""
    residual = {"zero_init_residual": args.zero_init_residual}
    return MobileNetV2(10, args.width, args.variant, args.dropout, **residual, rng=rng)


def evaluate_test(model, args, test, device):
    """The `Evaluation` of the test pictures."""
    batches = make_batches(args, test, shuffle=False, device=device)
    return evaluate(model, sn.CrossEntropyLoss(), batches, device, args.flip_test)


def weights_of(arrays):
    """The weights of a checkpoint that are to be tested: the averaged ones, where it has them."""
    average = part(arrays, "average")
    average.pop("updates", None)
    return average or part(arrays, "model")


if __name__ == "__main__":
    sys.exit(main())
