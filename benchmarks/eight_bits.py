"""What 8 bits cost behind ReLU6 and behind ReLU: one recipe, two networks, one table.

    python benchmarks/eight_bits.py --data DIR --width 0.25 --epochs 8

Trains MobileNetV2 (cifar) twice from the same first weights in the same order of pictures, then does to each what
`python -m scratchnet.quantized` does. Nothing here is timed.
"""

import argparse
from itertools import islice

import numpy as np

import scratchnet as sn
from models import MobileNetV2
from scratchnet.data.cifar10 import MEAN, STD, load_cifar10
from scratchnet.quantized.__main__ import measure
from scratchnet.training.batches import Batches, split
from scratchnet.training.schedule import one_cycle
from scratchnet.training.step import train_step


def with_relu(model):
    """The model with ReLU in the place of ReLU6."""
    for _, module in model.named_modules():
        for name, child in module.named_children():
            if type(child) is sn.ReLU6:
                setattr(module, name, sn.ReLU())
    return model


def train(model, batches, epochs, lr):
    """SGD with Nesterov momentum and one cycle, as the program's preset `best` has it."""
    optimizer = sn.SGD(model.named_parameters(), lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    criterion, total = sn.CrossEntropyLoss(0.1), epochs * len(batches)
    for epoch in range(epochs):
        losses = []
        for x, labels in batches.epoch(epoch):
            optimizer.lr = one_cycle(optimizer.steps, total, lr)
            losses.append(float(train_step(model, criterion, optimizer, x, labels)[0]))
        print(f"  epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.4f}", flush=True)
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--fine-tune", type=int, default=1, help="epochs on the grids")
    parser.add_argument("--integers", type=int, default=1000, help="test pictures for whole numbers")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("eight_bits:", ", ".join(f"{name} {value}" for name, value in vars(args).items() if name != "data"))
    normal = {"mean": MEAN, "std": STD}
    data, test = load_cifar10(args.data)
    data, _ = split(data, 0.1, args.seed)
    testing = list(Batches(test, 250, seed=0, shuffle=False, **normal).epoch(0))
    seen = list(islice(Batches(data, 64, seed=0, **normal).epoch(0), 16))
    for name, change in (("ReLU6", lambda model: model), ("ReLU", with_relu)):
        rng = np.random.default_rng(args.seed)
        model = change(MobileNetV2(10, args.width, dropout=0.0, zero_init_residual=True, rng=rng))
        batches = Batches(data, 64, seed=args.seed, augment=True, alternate=True, drop_last=True, **normal)
        print(name)
        train(model, batches, args.epochs, args.lr)
        print(f"  {'':<32}  pictures    loss  accuracy  as float32")
        for what, n, *numbers in measure(model, seen, batches, testing, args.fine_tune, args.lr / 100, args.integers):
            print(f"  {what:<32}  {n:8,}  {numbers[0]:.4f}  {numbers[1]:8.4f}  {numbers[2]:10.4f}", flush=True)


if __name__ == "__main__":
    main()
