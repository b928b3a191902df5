#!/usr/bin/env python3
"""Train MobileNetV2 on CIFAR-10 or on pictures of your own, every gradient derived by hand.

Exit codes: 0 done; 1 a number was no longer finite, memory ran out, a file could not be written, or a rank was killed or
hung; 2 something asked for cannot be had; 130 and 143 stopped by a signal: the same command with --resume goes on.
"""

import sys

import numpy as np

import scratchnet as sn
from models import DEPTHS, MobileNetV2, ResNet, from_checkpoint
from scratchnet import weights
from scratchnet.data import imagenet, shapes
from scratchnet.data.dataset import Dataset, fingerprint
from scratchnet.data.pictures import PictureError, read_pictures
from scratchnet.device import resolve_device
from scratchnet.parallel import ranks
from scratchnet.program.console import Console, outlive_terminal
from scratchnet.program.data import FED, completed, load_data, require_classes, set_normalisation
from scratchnet.program.ending import fail
from scratchnet.program.flags import flags_of, parse
from scratchnet.program.folder import run_folder
from scratchnet.program.following import following
from scratchnet.program.memory import bytes_per_picture, make_fitting, out_of_memory, room, too_large
from scratchnet.program.parser import UsageError
from scratchnet.program.rank import take_terminal
from scratchnet.program.report import say_header, say_result, write_result
from scratchnet.program.resume import resume
from scratchnet.program.setup import (
    make_batches,
    make_parts,
    make_test_batches,
    set_precision,
    set_ranks,
    set_threads,
)
from scratchnet.program.watch import watching
from scratchnet.training.atomic import write_json
from scratchnet.training.checkpoint import CheckpointError, load
from scratchnet.training.evaluation import evaluate
from scratchnet.training.recorded import RecordedForward
from scratchnet.training.schema import check
from scratchnet.training.trainer import Trainer
from scratchnet.weights import weights_of


@outlive_terminal()
def main(arguments=None):
    """Run the command; returns the exit code. One of several ranks ends here, with the others."""
    take_terminal()
    console = Console()
    try:
        code = run(arguments, console)
        ranks.largest(code)  # nobody ends while another one may still fail
    except (Exception, KeyboardInterrupt) as error:
        code = fail(error, console)
    if ranks.size > 1:
        ranks.leave(code)
    return code


def run(arguments, console):
    """What `main` does where nothing goes wrong."""
    start_as_rank()
    args = parse(arguments, __doc__)
    device = resolve_device(args.device)
    set_precision(args.precision, device)
    if (code := set_ranks(args, device, __file__, arguments, console)) is not None:
        return code
    set_threads(args.threads)
    if args.eval:
        return test_checkpoint(args, device, console)
    if args.predict:
        return ranks.from_first(lambda: predict(args, device, console))
    data, test, source = load_data(args, console)
    set_normalisation(args, data)
    parts = make_parts(args, data, device, make_model)
    # only now, as nothing is wrong with the command
    with watching(args.watch) as watch, run_folder(args.out, keep=args.resume) as folder:
        if folder:
            console.log_to(folder.path / "log.txt")
        if folder and folder.moved:
            console.say(f"the earlier run in {args.out} was moved to {folder.moved}")
        return train(folder, args, parts, data, test, source, watch, console)


def start_as_rank():
    """Become one of several ranks, where something like mpiexec has started this process."""
    try:
        ranks.start()
    except ImportError:
        raise UsageError(
            "started as one of several processes, which need mpi4py to work together: pip install -e '.[fast]'"
        ) from None


def train(folder, args, parts, data, test, source, watch, console):
    """Train, then test the best checkpoint, once. Files are the first rank's affair: the others have no folder."""
    trainer = Trainer(**parts, out=args.out, console=console)
    check = trainer.record.check_folder = folder and folder.check
    if args.resume:
        resume(trainer, args, console)

    def open_folder():
        write_json(args.out / "config.json", trainer.config, check)
        if trainer.epoch < trainer.epochs:  # a result is there only once this run has one
            folder.check()
            for path in (args.out / "result.json", args.out / "confusion.png"):
                if path.exists():
                    path.unlink()

    ranks.from_first(open_folder)
    say_header(trainer, args, data, test, source)
    console.expect(args.epochs * len(trainer.train) - trainer.steps_done)
    before = room()
    with following(args, trainer, watch, console) as followers:
        try:
            trainer.run()
        except MemoryError as error:
            needs = bytes_per_picture(trainer.model, (3, args.image_size, args.image_size))
            raise MemoryError(out_of_memory(error, args.batch_size, needs, before)) from None
        arrays, header = trainer.best_state()
        best = trainer.record.best["epoch"]
        trainer.model.load_state_dict(weights_of(arrays))
        result = evaluate_test(trainer.model, trainer.forward, args, test, trainer.device, console)
        for follower in followers:
            follower.tested(trainer.steps_done, result)

    def close_folder():
        write_result(args, test, result, header, best, trainer.config, check)
        which = "the best by validation" if best else "the last"
        console.say(f"tested once, on {len(test.labels):,} pictures of {test.name}: epoch {header['epoch']}, {which}")
        say_result(console, args, test, result, args.out / "confusion.png", trainer.config["title"], check)

    ranks.from_first(close_folder)
    return 0


def test_checkpoint(args, device, console):
    """Test a checkpoint on the pictures that it was made for."""
    model, header = load_model(args.eval, args, device)
    config = header["config"]
    name = config["data"]["name"]
    args.sample = args.sample or (not args.data and name == shapes.NAME)
    if not (args.data or args.sample or name == "CIFAR-10"):
        raise UsageError(f"{args.eval} was trained on {name}: say with --data where its pictures are")
    trained, test, source = load_data(args, console, stand_in=False)
    require_classes(args.eval, config["data"], test)
    console.say(f"checkpoint  {args.eval}: {config['title']}, epoch {header['epoch']}")
    console.say(f"            {'averaged weights' if config.get('ema') else 'weights as they were'}")
    console.say(f"data        {len(test.labels):,} test pictures of {test.name}, {source}")
    if fingerprint(trained) != config["data"]["sha256"]:
        console.say(f"            trained on other pictures that are named {name}" + " too" * (name == test.name))
    forward = RecordedForward(model) if args.record and ranks.size == 1 else model
    result = evaluate_test(model, forward, args, test, device, console)
    picture = args.eval.with_suffix(".confusion.png")
    ranks.from_first(lambda: say_result(console, args, test, result, picture, config["title"]))
    return 0


def predict(args, device, console):
    """Say what each picture shows: the three likeliest classes. One rank does it, alone."""
    path, *pictures = args.predict
    model, classes, read = load_predictor(path, args, device)
    failures = []
    for name in pictures:
        try:
            x = read(name)
        except PictureError as error:
            if str(error) not in failures:  # without Pillow it is the same for all
                console.error(f"train_cifar.py: error: {error}")
            failures.append(str(error))
            continue
        logits = sn.to_device(model(sn.to_device(x, device)), "cpu")[0].astype(np.float64)
        share = np.exp(logits - logits.max())
        share /= share.sum()
        best = np.argsort(-share, kind="stable")[:3]
        console.say(f"{name}: " + ", ".join(f"{classes[k]} {100 * share[k]:.1f} %" for k in best))
    return 2 if failures else 0


def load_predictor(path, args, device):
    """(network in eval mode, names of its classes, file -> x) for a run's checkpoint, or for a network for ImageNet."""
    if "config" not in weights.read(path).header:
        model = from_checkpoint(path).to(device)
        said = model.config()
        large = DEPTHS[said["depth"]].large if "depth" in said else said.get("variant") == "imagenet"
        if not large or model.num_classes != len(imagenet.CLASSES):
            what = ", ".join(f"{name} {value}" for name, value in said.items())
            raise CheckpointError(
                f"{path}: a {type(model).__name__} with {what}, and nothing says which classes: expected a run's or "
                "ImageNet's"
            )
        return model, imagenet.CLASSES, imagenet.read_image
    model, header = load_model(path, args, device)
    classes, side = (header["config"]["data"][key] for key in ("classes", "side"))

    def read(name):
        data = Dataset(read_pictures([name], side), np.zeros(1, np.int64), classes, "pictures")
        ((x, _),) = make_batches(args, data, shuffle=False, batch_size=1).epoch(0)
        return x

    return model.eval(), classes, read


def load_model(path, args, device):
    """(network, header) of a checkpoint; the flags that say what it was fed with are set to its own."""
    arrays, header = ranks.from_first(lambda: load(path))
    state = weights_of(arrays)
    try:
        vars(args).update(flags_of(header))
    except UsageError as error:
        raise CheckpointError(f"{path} is a checkpoint of something else: its header has no good {error}") from None
    config = header["config"] = completed(header["config"])
    check(config, FED, f"the configuration in {path}")
    args.mean, args.std, classes = config["mean"], config["std"], len(config["data"]["classes"])
    if not any(array.shape[:1] == (classes,) for array in state.values()):
        raise CheckpointError(f"{path} has no output for each of its {classes} classes")

    def make(width):
        return make_model(args, np.random.default_rng(0), width, classes)

    try:
        model = make_fitting(make, args.width, state).to(device)
        model.load_state_dict(state)
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit its own configuration: {error}") from error
    batch_size = 1 if args.predict else args.batch_size
    needs, here = (args.width, args.image_size, batch_size), ranks.on_this_machine()
    if device == "cpu" and (why := too_large(make, *needs, room(), True, here)):
        raise CheckpointError(f"{path}: {why}")
    return model, header


# What a command asks for, made -------------------------------------------------------------------------------------------


def make_model(args, rng, width, classes):
    """The network that the flags ask for, for so many classes."""
    residual = {"zero_init_residual": args.zero_init_residual}
    if args.model != "mobilenetv2":
        return ResNet(int(args.model.removeprefix("resnet")), classes, width, **residual, rng=rng)
    return MobileNetV2(classes, width, args.variant, args.dropout, **residual, rng=rng)


def evaluate_test(model, forward, args, test, device, console):
    """The `Evaluation` of the test pictures, whose logits `forward` computes: the model, or its `RecordedForward`."""
    batches = console.follow(make_test_batches(args, test, device), "test")
    return evaluate(model, sn.CrossEntropyLoss(), batches, device, args.flip_test, forward)


if __name__ == "__main__":
    sys.exit(main())
