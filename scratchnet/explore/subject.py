"""What is explored: a network from a file, and a batch of pictures, read or drawn, as the network is fed."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratchnet import weights
from scratchnet.data import imagenet
from scratchnet.data.dataset import Dataset
from scratchnet.data.readers import load_pictures
from scratchnet.data.shapes import NAME as DRAWN
from scratchnet.data.shapes import draw_shapes
from scratchnet.layers.criterion import Loss
from scratchnet.layers.elementwise_loss import BCEWithLogitsLoss
from scratchnet.layers.loss import CrossEntropyLoss
from scratchnet.models import DEPTHS, from_checkpoint
from scratchnet.program.data import FED, completed, require_classes
from scratchnet.program.flags import flags_of
from scratchnet.program.parser import UsageError
from scratchnet.training.archive import CheckpointError
from scratchnet.training.batches import Batches
from scratchnet.training.schema import check, number

DRAWN_PICTURES = 1000  # as train_cifar.py draws to test on
HALF = (0.5,) * 3
RATE = 0.1  # where the file says nothing; train_cifar.py's default


class Subject(NamedTuple):
    """What a training step is taken of.

    title: what the network is.  source: what the pictures are.  model: in eval mode.  criterion: a loss.  lr: of the step.
    x: (N, 3, S, S).  target: (N,) labels, or what the maps that come out should be.  pictures: (N, 3, S, S) uint8, as they
    are seen.  numbers: of these pictures in their data set.  labels: (N,).  classes: the names of the network's outputs.
    names: of the pictures' own classes.  notes: what else has to be known, a sentence each.
    """

    title: str
    source: str
    model: Any
    criterion: Any
    lr: float
    x: np.ndarray
    target: np.ndarray
    pictures: np.ndarray
    numbers: list[int]
    labels: np.ndarray
    classes: list[str]
    names: list[str]
    notes: list[str]


def read_subject(path, data=None, pictures=(0,), count=4, batch_size=16, lr=None) -> Subject:
    """The network in a file, and the pictures that it is shown.

    Args:
        path: a checkpoint of train_cifar.py, or any other file that `from_checkpoint` reads.
        data: a folder or an archive, as train_cifar.py takes it; None draws shapes.
        pictures: numbers of test pictures; of a single one, `count` from that one on.
        count: how many are shown.
        batch_size: pictures of the step; those behind the last one shown fill it.
        lr: learning rate of the step; None: the file's.

    Raises:
        CheckpointError, DataError, PictureError, UsageError: something cannot be had; one sentence that says what.
    """
    model = from_checkpoint(path)
    header = weights.read(path).header
    config = _config(path, header)
    if getattr(model, "in_channels", 3) != 3:
        raise CheckpointError(f"{path}: the network takes {model.in_channels} channels, and pictures have 3")
    outputs = getattr(model, model.OUTPUTS)
    side = config.get("image_size") or (224 if _is_large(model) else 32)
    test, source = _test_pictures(data, side, config.get("seed", 0))
    notes, classes = [], _classes(config, outputs)
    trained = config.get("data")
    if trained and (data or trained["name"] == DRAWN):
        require_classes(path, trained, test)
    elif trained:
        notes.append(
            f"The network was trained on {trained['name']} and is shown drawn shapes instead, which are none of its "
            "classes: name its pictures with --data."
        )
    numbers = _numbers(pictures, count, batch_size, len(test.labels), source)
    images, labels = test.images[numbers], test.labels[numbers]
    by = {"mean": config.get("mean", HALF), "std": config.get("std", HALF)}
    if "mean" not in config and _is_large(model):
        by = {"mean": imagenet.MEAN, "std": imagenet.STD}
    batches = Batches(
        Dataset(images, labels, test.classes, test.name), len(images), shuffle=False, image_size=side, **by
    )
    ((x, labels),) = batches.epoch(0)
    lr = lr if lr is not None else float(config.get("lr", RATE))
    title = config.get("title") or f"{model.name}({', '.join(f'{k}={v}' for k, v in model.config().items())})"
    criterion: Loss = CrossEntropyLoss(config.get("label_smoothing", 0.0))
    target = labels
    if model.OUTPUTS == "out_channels":  # maps come out, and no file says what they mean
        criterion, target = BCEWithLogitsLoss(), bright_pixels(x, outputs)
        notes.append("Maps come out of this network: it is asked which pixels are brighter than their picture's mean.")
    elif labels.max() >= outputs:
        raise UsageError(f"{path} has {outputs} classes, and these pictures are of {len(test.classes)}")
    elif not config:
        notes.append("The file does not say what its classes are: the pictures' labels are taken for their numbers.")
    source = f"test pictures of {test.name}, {source}"
    names = [str(name) for name in test.classes]
    return Subject(title, source, model, criterion, lr, x, target, images, numbers, labels, classes, names, notes)


def bright_pixels(x, maps):
    """What the maps of a network without classes are held to: 1 where a pixel is brighter than its picture's mean."""
    grey = x.mean(axis=1, keepdims=True)
    return np.repeat(grey > grey.mean(axis=(2, 3), keepdims=True), maps, axis=1).astype(x.dtype)


def _config(path, header):
    """The configuration of a run in a file's header, checked; {} where it has none."""
    if "config" not in header:
        return {}
    try:
        flags = flags_of(header)
    except UsageError as error:
        raise CheckpointError(f"{path} is a checkpoint of something else: its header has no good {error}") from None
    config = completed(header["config"])
    optional = {"label_smoothing": number(0, 1), "lr": number(0, 1e30)}
    check(config, FED | {key: kind for key, kind in optional.items() if key in config}, f"the configuration in {path}")
    return config | flags


def _classes(config, outputs):
    names = [str(name) for name in config["data"]["classes"]] if config else []
    if not config and outputs == len(imagenet.CLASSES):
        names = list(imagenet.CLASSES)
    return names if len(names) == outputs else [f"class {k}" for k in range(outputs)]


def _is_large(model):
    """Whether it is one for ImageNet's pictures."""
    depth = DEPTHS.get(getattr(model, "depth", None))
    return depth.large if depth else getattr(model, "variant", "") == "imagenet"


def _test_pictures(data, side, seed):
    """(test pictures, where they come from)."""
    if data is None:
        return draw_shapes(0, DRAWN_PICTURES, seed)[1], "drawn by scratchnet/data/shapes.py"
    _, test, note = load_pictures(Path(data), size=side)
    return test, f"from {Path(data).name}" + (f", {note}" if note else "")


def _numbers(asked, count, batch_size, there, source):
    """Numbers of the batch's pictures, those that are shown first."""
    shown = list(dict.fromkeys(asked))
    if outside := [number for number in shown if not 0 <= number < there]:
        raise UsageError(
            f"--picture {outside[0]}: there are {there:,} test pictures {source}, numbered from 0 to {there - 1}"
        )
    if len(shown) == 1:
        shown = [(shown[0] + k) % there for k in range(min(count, there))]
    more = ((shown[-1] + 1 + k) % there for k in range(there))
    rest = [number for number in more if number not in shown]
    numbers = shown + rest[: max(0, batch_size - len(shown))]
    if len(numbers) < 2:
        raise UsageError(f"a training step needs at least 2 pictures, and {source} has {there}")
    return numbers
