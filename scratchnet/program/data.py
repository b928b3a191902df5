"""The pictures of a run, read, downloaded or drawn; and what a checkpoint says of those that it was trained on."""

from typing import Any

import scratchnet as sn
from scratchnet.data import cifar10, shapes
from scratchnet.data.cifar import CIFAR10
from scratchnet.data.dataset import fingerprint, mean_and_std
from scratchnet.data.files import DataError
from scratchnet.data.folders import MOST_CLASSES
from scratchnet.data.readers import load_pictures
from scratchnet.data.shapes import draw_shapes
from scratchnet.parallel import ranks
from scratchnet.program.flags import MODELS, NORMALISE
from scratchnet.program.memory import room
from scratchnet.program.parser import UsageError
from scratchnet.training.schema import TEXT, Kind, number, whole

CLASSES = Kind(
    "a list of two names or more",
    lambda value: isinstance(value, list) and 2 <= len(value) <= MOST_CLASSES and all(map(TEXT.fits, value)),
)
# What is believed of a checkpoint's configuration: what the network was shown, and what its outputs mean.
FED: dict[str, Any] = {
    "mean": [number(0, 1)] * 3, "std": [number(1e-6, 1)] * 3, "data": {"classes": CLASSES, "side": whole(1, 2**14)},
}  # fmt: skip


def load_data(args, console, stand_in=True):
    """(train, test, where they come from): --data, then the cache, then the download, then the drawn sample, if allowed.

    Every rank reads them; only the first one downloads, and whether the pictures are drawn is its decision.

    Raises:
        DataError, PictureError: they cannot be had, or other ranks have read other pictures than the first one.
    """
    train, test, source = _load_data(args, console, stand_in)
    if ranks.size > 1:
        found = bytes.fromhex(fingerprint(train) + fingerprint(test))
        if others := ranks.those_that_differ(found):
            raise DataError(f"rank {', '.join(map(str, others))}: other pictures than on rank 0, {source}")
    return train, test, source


def _load_data(args, console, stand_in):
    if args.data:

        def follow(pictures, count):
            with console.bar(count, 0, "reading", training=False, unit="pictures") as bar:
                for picture in pictures:
                    yield picture
                    bar.update()

        free = room()
        train, test, note = load_pictures(
            args.data, size=args.image_size, room=free and free / ranks.on_this_machine(), follow=follow,
            threads=sn.get_num_threads(),
        )  # fmt: skip
        return train, test, f"from {args.data}" + (f", {note}" if note else "")
    if not args.sample:
        kept: list = []  # what the first rank reads while it looks

        def find():
            try:
                place = cifar10.find_or_download()
                kept.extend(cifar10.load_cifar10(place))
            except DataError as error:
                return None, str(error)
            return place, None

        place, why = ranks.from_first(find)
        if place:
            return *(kept or cifar10.load_cifar10(place)), f"from {place}"
        if not stand_in:
            raise DataError(f"{why}; give CIFAR-10's folder or archive with --data")
        console.say(
            f"!!! NO CIFAR-10: {why}. TRAINING ON DRAWN SHAPES INSTEAD: ten classes of generated pictures, whose "
            "accuracy says nothing about CIFAR-10. Give its folder or archive with --data for the real thing."
        )
    return *draw_shapes(seed=args.seed), "generated (scratchnet/data/shapes.py)"


def set_normalisation(args, data):
    """Decide by which numbers the pictures are normalised: `args.mean` and `args.std`, which are kept in checkpoints."""
    if args.normalise is None:  # the drawn shapes stand in for CIFAR-10
        args.normalise = "cifar" if data.name in ("CIFAR-10", shapes.NAME) else "data"
    mean, std = mean_and_std(data.images) if args.normalise == "data" else NORMALISE[args.normalise]
    args.mean, args.std = list(mean), list(std)


def describe(data):
    """What a run's configuration says of the data that it is trained on."""
    side = data.images.shape[2]
    return {"name": data.name, "sha256": fingerprint(data), "classes": list(data.classes), "side": side}


def completed(config):
    """A checkpoint's configuration with the fields of `FED` that older ones do not have; any value may be in it."""
    if not isinstance(config, dict):
        return config
    config = {"model": MODELS[0]} | config
    data, normalise = config.get("data"), config.get("normalise")
    if isinstance(normalise, str) and normalise in NORMALISE:
        mean, std = NORMALISE[normalise]
        config = {"mean": list(mean), "std": list(std)} | config
    if isinstance(data, dict):
        classes = shapes.CLASSES if data.get("name") == shapes.NAME else CIFAR10
        config = config | {"data": {"classes": list(classes), "side": 32} | data}
    return config


def require_classes(path, trained, test):
    """Refuse to test a checkpoint on pictures of other classes than those that it was trained on.

    Args:
        path: of the checkpoint.
        trained: what `describe` said of its data.
        test: `Dataset` to test on.

    Raises:
        UsageError: with what both are.
    """
    name, classes = trained["name"], trained["classes"]
    if [*test.classes] != classes:
        odd = ", ".join([*sorted({*classes} ^ {*test.classes})[:3], "…"])
        raise UsageError(
            f"{path} was trained on {name}, and these pictures are {test.name}, with other classes ({odd}): it can be "
            f"tested on those of {name} only"
        )
