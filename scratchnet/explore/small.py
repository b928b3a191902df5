"""A page of a small network, trained here on drawn shapes: nothing has to be there before."""

import os

import numpy as np

from scratchnet.data.shapes import CLASSES, draw_shapes
from scratchnet.explore.page import write_page
from scratchnet.explore.subject import HALF, Subject
from scratchnet.kernels import use_kernels
from scratchnet.layers.linear import Flatten, Linear
from scratchnet.layers.loss import CrossEntropyLoss
from scratchnet.layers.pool import GlobalAvgPool2d
from scratchnet.models.mobilenetv2 import conv_bn, inverted_residual
from scratchnet.sequential import Sequential
from scratchnet.training.batches import Batches
from scratchnet.training.optim import SGD
from scratchnet.training.schedule import one_cycle
from scratchnet.training.step import train_step

MOST_BYTES = 3_000_000


def demo(path: str | os.PathLike[str], steps: int = 200) -> tuple[int, int]:
    """Train a small network of MobileNetV2's blocks on drawn shapes, some seconds, and write its page; as `explore`.

    Args:
        path: the file to write.
        steps: of training.
    """
    model, names = small_network(np.random.default_rng(0)), list(CLASSES)
    train, test = draw_shapes(32 * steps, 16, seed=0)
    criterion, optimizer = CrossEntropyLoss(0.1), SGD(model.parameters(), 0.1, 0.9, nesterov=True, weight_decay=5e-4)
    with use_kernels("numpy"):  # compiling others would take longer than the training
        for step, (x, labels) in enumerate(Batches(train, 32, mean=HALF, std=HALF).epoch(0)):
            optimizer.lr = one_cycle(step, steps, lr=0.1)
            train_step(model, criterion, optimizer, x, labels)
    ((x, labels),) = Batches(test, 16, shuffle=False, mean=HALF, std=HALF).epoch(0)
    subject = Subject(
        f"Four of MobileNetV2's blocks, trained on drawn shapes for {steps} steps", "drawn pictures that are new to it",
        model.eval(), criterion, 0.05, x, labels, test.images, [*range(16)], labels, names, names, [],
    )  # fmt: skip
    return write_page(subject, path, most_bytes=MOST_BYTES)


def small_network(rng):
    """MobileNetV2 in small: a stem, four inverted residual blocks, one with a shortcut, a head and a classifier."""
    make = {"dtype": np.float32, "rng": rng}
    features = [conv_bn(3, 8, 3, 1, **make)]
    for channels, out, t, stride in ((8, 8, 1, 2), (8, 12, 4, 1), (12, 12, 4, 1), (12, 20, 4, 2)):
        features.append(inverted_residual(channels, out, t, stride, False, **make))
    features.append(conv_bn(20, 64, 1, 1, **make))
    layers = {"features": Sequential(*features), "pool": GlobalAvgPool2d(), "flatten": Flatten()}
    return Sequential(layers | {"classifier": Linear(64, len(CLASSES), **make)})
