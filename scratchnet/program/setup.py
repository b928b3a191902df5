"""From flags to what a run is made of: batches, optimizer, schedule, and the configuration that says all of it."""

import functools
import sys

import numpy as np

import scratchnet as sn
from scratchnet import kernels
from scratchnet.device import bfloat16_dtype, use_tf32
from scratchnet.parallel import ranks
from scratchnet.program.data import describe
from scratchnet.program.flags import FREE, network_title
from scratchnet.program.launch import run_as_ranks, sensible_ranks
from scratchnet.program.memory import room, too_large
from scratchnet.program.parser import UsageError
from scratchnet.training import optim, schedule
from scratchnet.training.average import WeightAverage
from scratchnet.training.batches import Batches, split

VALIDATION = 0.1  # of the training pictures


def set_precision(precision, device):
    """How exact matrix products and activations are; on a CPU they always are float32."""
    if device == "cuda":
        use_tf32(precision == "tf32")
        if precision == "bf16":
            bfloat16_dtype()
    elif precision != "float32":
        raise UsageError(f"--precision {precision} needs a GPU: use --device cuda, or --precision float32")


def set_ranks(args, device, program, arguments, console):
    """Be one of the ranks that the flags ask for, or start them.

    Args:
        args: the flags.
        device: "cpu" or "cuda".
        program, arguments: what a rank is started with. Called with no arguments it is a command, which fills the machine;
            called as a function, it computes in its own process, unless it is told a number.
        console: what says why there are none.

    Returns:
        The exit code, where others have done it all; else None.

    Raises:
        UsageError: mpiexec started another number than `--ranks` asks for.
    """
    if ranks.was_started():
        ranks.start(args.rank_timeout)
        if args.ranks not in ("auto", ranks.size):
            raise UsageError(f"--ranks {args.ranks}: something like mpiexec has started {ranks.size} already")
    else:
        count, more = args.ranks, []
        if count == "auto":
            cores = sn.get_num_threads()
            count, threads = sensible_ranks(max(1, cores // (args.threads or 1)), args.batch_size)
            if device != "cpu" or args.predict or arguments is not None:
                count = 1
            more = [] if args.threads else ["--threads", str(threads)]
        if count > 1 and not args.predict:
            given = sys.argv[1:] if arguments is None else [*map(str, arguments)]
            command = [sys.executable, str(program), *given, "--ranks", str(count), *more]
            if (code := run_as_ranks(count, command, console)) is not None:
                return code
    ranks.local_batch_norm = args.local_batch_norm
    return None


def set_threads(number):
    """Compute on so many threads; None: the cores that this process may use, or a rank's share of them."""
    if ranks.size > 1:
        number = number or ranks.cores()
    if number:
        try:
            sn.set_num_threads(number)
        except RuntimeError as error:  # the machine does not give as many
            raise UsageError(f"--threads {number}: {error}") from error


def make_parts(args, data, device, make_model):
    """What `Trainer` takes for the run that the flags ask for, but for the folder; nothing is written yet.

    Args:
        args: the flags.
        data: `Dataset` to train on, from which the validation pictures are taken.
        device: "cpu" or "cuda".
        make_model: (args, rng, width, number of classes) -> network.

    Raises:
        UsageError: the flags ask for what cannot be had.
    """
    rng, classes = np.random.default_rng(args.seed), len(data.classes)
    _check_size(args, lambda width: make_model(args, np.random.default_rng(0), width, classes), device)
    try:
        model = make_model(args, rng, args.width, classes).to(device)
        training, validation = split(data, VALIDATION, args.seed)
        if not len(validation.labels):
            raise UsageError(
                f"{data.name}: {len(data.labels)} training pictures are too few to hold out a tenth of them"
            )
        train = make_batches(args, training, device=device, drop_last=True, **make_augmentation(args))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return {
        "model": model, "criterion": sn.CrossEntropyLoss(args.label_smoothing), "optimizer": make_optimizer(args, model),
        "schedule": make_schedule(args, total=args.epochs * len(train)), "train": train, "epochs": args.epochs,
        "validation": make_test_batches(args, validation, device), "device": device,
        "average": WeightAverage(model, args.ema) if args.ema else None, "config": make_config(args, data),
        "generator": rng, "checkpoint_every": args.checkpoint_every, "recorded": args.record,
    }  # fmt: skip


def make_batches(args, dataset, **options):
    """Batches of a data set, once `set_normalisation` has decided by what to normalise it."""
    form = {"batch_size": args.batch_size, "image_size": args.image_size, "bfloat16": args.precision == "bf16"}
    return Batches(dataset, seed=args.seed, mean=args.mean, std=args.std, **form | options)


def make_test_batches(args, dataset, device):
    """Batches to evaluate with, in order: a whole one for each rank."""
    return make_batches(args, dataset, shuffle=False, device=device, batch_size=args.batch_size * ranks.size)


def make_augmentation(args):
    """What happens to the training pictures, as options of `Batches`."""
    alternate = args.augment == "crop-alternate"
    return {"augment": args.augment != "none", "padding": args.crop_padding, "alternate": alternate}


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
    config["data"] = describe(dataset)
    config["ranks"] = ranks.size  # sums of several parts are rounded in another way too
    config["kernels"] = kernels.enabled()  # compiled ones round in another way than NumPy's
    config["title"] = f"{network_title(args)}, on {dataset.name}, seed {args.seed}"
    return config


def _check_size(args, make_model, device):
    """Refuse what would not fit into memory, and one picture a step where batch norm needs more; on small networks.

    Args:
        args: the flags.
        make_model: width -> network.
        device: "cpu" or "cuda", whose memory is its own.

    Raises:
        UsageError: with what would fit.
    """
    here = ranks.on_this_machine()
    pictures = -(-args.batch_size * here // ranks.size)
    needs = args.width, args.image_size, pictures
    if device == "cpu" and (why := too_large(make_model, *needs, room(), False, here)):
        raise UsageError(why)
    own = max(1, args.batch_size // ranks.size) if args.local_batch_norm else args.batch_size
    if own == 1:
        try:
            with ranks.alone():
                make_model(min(args.width, 0.1))(np.zeros((1, 3, args.image_size, args.image_size), np.float32))
        except ValueError as error:
            what = f"--batch-size {args.batch_size} with --image-size {args.image_size}"
            what += f" and --local-batch-norm on {ranks.size} ranks" if args.batch_size > 1 else ""
            raise UsageError(f"{what} is too little: {error}") from error
