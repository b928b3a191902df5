"""`python -m scratchnet.quantized CHECKPOINT --data DIR`: what a trained MobileNetV2 loses in 8 bits.

Ranges are seen in training pictures. The network is then tested as it was, on grids of 8 bits, after fine-tuning on them,
and, on some of the test pictures, on whole numbers alone. Exit code 2 where the checkpoint or the pictures cannot be had.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

import numpy as np

import scratchnet as sn
from scratchnet.data.files import DataError
from scratchnet.data.pictures import PictureError
from scratchnet.data.readers import load_pictures
from scratchnet.models import MobileNetV2
from scratchnet.program.data import completed
from scratchnet.quantized import IntegerNetwork, calibrate, quantize
from scratchnet.training.archive import CheckpointError
from scratchnet.training.batches import Batches, split
from scratchnet.training.schedule import cosine
from scratchnet.training.step import train_step
from scratchnet.weights import read


def main(arguments=None):
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scratchnet.quantized", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="best.npz of train_cifar.py")
    parser.add_argument("--data", required=True, help="its pictures, as train_cifar.py takes them")
    parser.add_argument("--pictures", type=int, default=1024, help="training pictures to see ranges in (default: 1024)")
    parser.add_argument("--epochs", type=int, default=1, help="of fine-tuning; 0 leaves it out (default: 1)")
    parser.add_argument("--lr", type=float, default=1e-3, help="of fine-tuning, at first (default: 0.001)")
    parser.add_argument("--integers", type=int, default=1000, help="test pictures for whole numbers (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the order in fine-tuning (default: 0)")
    args = parser.parse_args(arguments)
    try:
        model, config = network_of(args.checkpoint)
        train, test, _ = load_pictures(args.data, size=config["image_size"])
        if len(test.classes) != model.num_classes:
            raise DataError(f"{args.data} has {len(test.classes)} classes, and the network {model.num_classes}")
    except (CheckpointError, DataError, PictureError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    train, _ = split(train, 0.1, config["seed"])
    options = {"seed": args.seed, **{name: config[name] for name in ("mean", "std", "image_size")}}
    tuning = Batches(train, 64, augment=True, drop_last=True, **options)
    testing = list(Batches(test, 250, shuffle=False, **options).epoch(0))
    seen = list(islice(Batches(train, 64, **options).epoch(0), -(-args.pictures // 64)))
    print(f"{'':<34}  pictures    loss  accuracy  as float32", flush=True)
    for name, pictures, *numbers in measure(model, seen, tuning, testing, args.epochs, args.lr, args.integers):
        print(f"{name:<34}  {pictures:8,}  {numbers[0]:.4f}  {numbers[1]:8.4f}  {numbers[2]:10.4f}", flush=True)
    return 0


def network_of(path):
    """(network, the configuration that it was trained with) of a run's checkpoint."""
    model = MobileNetV2.from_checkpoint(path)
    config = completed(read(path).header.get("config"))
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} says nothing of the pictures that it was trained on: expected a run's best.npz")
    return model, config


def measure(model, seen, tuning, testing, epochs, lr, integers):
    """(what, pictures, loss, accuracy, share that is taken for what the floats take it for), as they are found.

    Args:
        model: a trained network.
        seen: (x, labels) pairs to see ranges in.
        tuning: `Batches` to fine-tune on.
        testing: (x, labels) pairs to test on.
        epochs, lr: of `fine_tune`.
        integers: how many of the test pictures are computed on whole numbers, in whole batches.
    """
    right = np.concatenate([labels for _, labels in testing])
    floats = logits_of(model, testing).argmax(axis=1)

    def row(name, network, batches=testing, dtype=np.float32):
        logits = logits_of(network, batches, dtype)
        labels, said = right[: len(logits)], logits.argmax(axis=1)
        loss = float(sn.CrossEntropyLoss()(logits, labels))
        return name, len(logits), loss, (said == labels).mean(), (said == floats[: len(logits)]).mean()

    yield row("float32", model)
    simulated = quantize(model, seen)
    yield row("8 bits", simulated)
    if epochs:
        calibrate(fine_tune(simulated, tuning, epochs, lr), seen)
        yield row(f"8 bits, fine-tuned, epochs: {epochs}", simulated)
    few = testing[: -(-integers // len(testing[0][1]))]
    simulated.astype(np.float64)
    yield row("8 bits, simulated in float64", simulated, few, np.float64)
    yield row("8 bits, whole numbers", IntegerNetwork(simulated), few, np.float64)


def logits_of(network, batches, dtype=np.float32):
    """(N, K), of a network in eval mode that computes in a dtype."""
    return np.concatenate([network(x.astype(dtype)) for x, _ in batches])


def fine_tune(simulated, batches, epochs, lr):
    """Train a network on its grids by SGD with momentum, the rate falling to 0. Returns it in eval mode.

    Args:
        simulated: what `quantize` made; trained in place.
        batches: `Batches` of training pictures.
        epochs: how often they are gone over.
        lr: the rate at first.
    """
    optimizer = sn.SGD(simulated.named_parameters(), lr, momentum=0.9, nesterov=True)
    criterion, total = sn.CrossEntropyLoss(), epochs * len(batches)
    simulated.train()
    for epoch in range(epochs):
        for x, labels in batches.epoch(epoch):
            optimizer.lr = cosine(optimizer.steps, total, lr)
            train_step(simulated, criterion, optimizer, x, labels)
    return simulated.eval()


if __name__ == "__main__":
    sys.exit(main())
