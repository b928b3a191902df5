"""From flags to what a run is made of: batches, optimizer, schedule, and the configuration that says all of it."""

import functools

from scratchnet.data import cifar10
from scratchnet.program.flags import FREE, NORMALISE
from scratchnet.training import optim, schedule
from scratchnet.training.batches import Batches


def make_batches(args, dataset, **options):
    """Batches of a data set."""
    mean, std = NORMALISE[args.normalise]
    form = {"batch_size": args.batch_size, "image_size": args.image_size, "bfloat16": args.precision == "bf16"}
    return Batches(dataset, seed=args.seed, mean=mean, std=std, **form | options)


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
    config["data"] = {"name": dataset.name, "sha256": cifar10.fingerprint(dataset)}
    config["title"] = f"MobileNetV2 {args.variant}, width {args.width}, on {dataset.name}, seed {args.seed}"
    return config
