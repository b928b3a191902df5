"""What train_cifar.py says: what is about to be trained, and how it ended."""

import numpy as np

import scratchnet as sn
from scratchnet.kernels import compiled
from scratchnet.layers.dropout import Dropout
from scratchnet.parallel import ranks
from scratchnet.program.flags import network_title
from scratchnet.trace import trace, trace_step
from scratchnet.trace_table import table
from scratchnet.training.atomic import write_json
from scratchnet.training.evaluation import confusion_lines, draw_confusion


def say_header(trainer, args, data, test, source):
    """What is about to be trained, on what, where."""
    say = trainer.console.say
    counts = [len(part.dataset.labels) for part in (trainer.train, trainer.validation)]
    layers = trace(trainer.model, (3, args.image_size, args.image_size))
    parameters, macs = (sum(getattr(step, what) for step in layers) for what in ("parameters", "multiply_adds"))
    how = f"{workers()}, kernels {trainer.config['kernels']}" if trainer.device == "cpu" else args.precision
    say(f"data      {data.name}, {source}")
    say(f"          {counts[0]:,} train + {counts[1]:,} validation + {len(test.labels):,} test pictures")
    padding = f" from {args.crop_padding} pixels of padding" if args.augment != "none" else ""
    say(f"          at {args.image_size}×{args.image_size}, augmentation {args.augment}{padding}")
    say(f"          normalised by {_numbers(args)}")
    some = ", ".join(data.classes[:12]) + (", …" if len(data.classes) > 12 else "")
    say(f"          {len(data.classes)} classes: {some}")
    say(f"network   {network_title(args)}, {parameters:,} parameters")
    say(f"          {macs / 1e6:.1f} million multiply-adds a picture")
    say(f"training  {args.epochs} epochs of {len(trainer.train)} steps, {args.batch_size} pictures each")
    say(f"          {args.optimizer}, learning rate {args.lr:g} {args.schedule}, weight decay {args.weight_decay:g}")
    average = f", weights averaged with decay {args.ema:g}" if args.ema else ""
    dropped = [module.p for _, module in trainer.model.named_modules() if isinstance(module, Dropout)]
    drops = f", dropout {max(dropped):g}" if dropped else ""
    zero = ", each block's last batch norm starts at 0" if args.zero_init_residual else ""
    say(f"          label smoothing {args.label_smoothing:g}{drops}{average}{zero}")
    say(f"machine   {trainer.device}, {how}, NumPy {np.__version__}, seed {args.seed}")
    if trainer.device == "cpu" and (why := compiled.why_not()):
        say(f"          {why}: with the extra fast, pip install -e '.[fast]', a step takes about half as long")
    say(f"output    {args.out}")
    if args.trace:
        step = ranks.from_first(lambda: _trace(trainer))  # with the whole batch
        say(f"a training step with the first {args.batch_size} pictures:\n{table(step)}")


def _numbers(args):
    """Mean and standard deviation, in words."""
    known = {"cifar": "CIFAR-10's statistics", "half": "one half"}
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (args.mean, args.std))
    return known.get(args.normalise) or f"the training pictures' mean {mean} and deviation {std}"


def workers():
    """Who computes, and where, if that is not here alone."""
    threads, places = sn.get_num_threads(), list(dict.fromkeys(ranks.machines()))
    on_each = f"{threads} thread" + ("s" if threads > 1 else "")
    where = f" on {', '.join(places)}" if len(places) > 1 else ""
    norm = ", batch norm over each rank's own pictures" if ranks.local_batch_norm else ""
    return f"{ranks.size} ranks × {on_each}{where}{norm}" if ranks.size > 1 else on_each


def _trace(trainer):
    batches = trainer.train.epoch(0)
    step = trace_step(trainer.model, trainer.criterion, *next(batches))
    batches.close()
    return step


def write_result(args, test, result, header, best_epoch, config, check):
    """result.json: the test of the checkpoint with this header, which is that of the best epoch, or of the last (0)."""
    shares = zip(test.classes, result.class_accuracy.tolist(), strict=True)
    report = {
        "data": config["data"],
        "tested_epoch": header["epoch"],
        "best_epoch": best_epoch or None,  # None: no best checkpoint was left
        "best_sha256": header["checkpoint"]["sha256"] if best_epoch else None,
        "flip_test": args.flip_test,
        "test_loss": result.loss,
        "test_accuracy": result.accuracy,
        "class_accuracy": {name: None if share != share else share for name, share in shares},  # JSON has no NaN
    }
    write_json(args.out / "result.json", report, check)


def say_result(console, args, test, result, picture, title, check=None):
    """The confusion matrix, and the last two lines of a run."""
    for line in confusion_lines(result, test.classes):
        console.say(line)
    try:
        if draw_confusion(result, test.classes, picture, title, check):
            console.say(f"drawn as {picture}")
    except OSError as error:
        console.say(f"{picture} could not be drawn: {error.strerror or error}")
    if args.flip_test:
        console.say("each picture seen together with its mirror image")
    console.say(f"Test loss: {result.loss:.4f}")
    console.say(f"Test accuracy: {result.accuracy:.4f}")
