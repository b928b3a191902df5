"""What a network gets right, class by class: the evaluation of a data set, its table and its picture."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratchnet.array import as_images, as_maps, to_device
from scratchnet.device import get_array_module
from scratchnet.parallel import ranks
from scratchnet.training.atomic import Check, atomic_file
from scratchnet.training.metrics import Average

MATRIX = 20  # classes whose matrix fits on a screen


class Evaluation(NamedTuple):
    """Of all pictures: the mean loss, the share that is right, and how often each class was taken for each."""

    loss: float
    accuracy: float
    confusion: np.ndarray  # (K, K) int64: row = the class, column = what the network says

    @property
    def class_accuracy(self) -> np.ndarray:
        """(K,): of each class the share that is right, NaN where no picture is of it."""
        counts = self.confusion.sum(axis=1)
        return np.divide(self.confusion.diagonal(), counts, out=np.full(len(counts), np.nan), where=counts > 0)


def evaluate(model, criterion, batches, device="cpu", flip=False, forward=None, seen=()) -> Evaluation:
    """Evaluate all batches in eval mode; the network and all in it are left in the modes in which they were.

    All ranks call it together: each sees its share of every batch, and what comes out is of all pictures, on each rank.

    Args:
        model, criterion: as `train_step` takes them.
        batches: `Batches`, of which epoch 0 is taken.
        device: where the model is.
        flip: whether the logits are the mean of those for the picture and for its mirror image.
        forward: computes the logits of x instead of the model itself: its `RecordedForward`.
        seen: functions that are given the logits and the labels of each batch, of this rank's pictures.
    """
    forward = forward or model
    modes = [(module, module.training, module.saves) for _, module in model.named_modules()]
    model.eval()
    loss, confusion = Average(), None
    try:
        for x, labels in batches.epoch(0):
            if not len(labels):  # there are more ranks than pictures
                continue
            x, labels = to_device(x, device), to_device(labels, device)
            with ranks.alone():  # no picture depends on another: nothing to exchange but the sums, at the end
                logits = forward(x)
                if flip:
                    logits = 0.5 * (logits + forward(mirror(x)))
                value = criterion(logits, labels)
            loss.add(value, len(labels))
            for tell in seen:
                tell(logits, labels)
            classes = logits.shape[1]
            every = get_array_module(logits).arange(classes)[:, None]
            right, said = ((every == chosen).astype("float32") for chosen in (labels, logits.argmax(axis=1)))  # (K, N)
            counts = (right @ said.T).astype("int64")  # bincount would make a GPU wait
            confusion = counts if confusion is None else confusion + counts
    finally:
        for module, training, saves in modes:
            module.training, module.saves = training, saves
    classes = ranks.largest(0 if confusion is None else len(confusion))
    table = np.zeros((classes, classes), np.int64) if confusion is None else to_device(confusion, "cpu")
    table, total = ranks.sum_over_ranks(table), ranks.sum_over_ranks(float(loss.sum))
    pictures = int(table.sum())
    return Evaluation(total / pictures, int(table.trace()) / pictures, table)


def mirror(x):
    """The pictures (N, C, H, W), left and right exchanged; channel-major, like x."""
    maps = as_maps(x)[:, :, ::-1]  # (C, H, W, N)
    return as_images(get_array_module(x).ascontiguousarray(maps), x)


def confusion_lines(result: Evaluation, classes: tuple[str, ...]) -> list[str]:
    """The confusion matrix as text: a line a class, with its accuracy; of more than `MATRIX` classes the worst ones."""
    if len(classes) > MATRIX:
        return _worst_lines(result, classes)
    width = max(5, *(len(str(n)) for n in result.confusion.flat))
    title = max(map(len, ("taken for", *classes)))
    head = " ".join(f"{name[:width]:>{width}}" for name in classes)
    lines = [f"{'taken for':>{title}}  {head}  accuracy"]
    for name, row, share in zip(classes, result.confusion, result.class_accuracy, strict=True):
        lines.append(f"{name:>{title}}  {' '.join(f'{n:>{width}}' for n in row)}  {share:8.4f}")
    return lines


def _worst_lines(result, classes):
    """The classes of least accuracy, and what each is taken for most often, where a matrix would be too wide to read."""
    shares = result.class_accuracy
    order = np.argsort(shares, kind="stable")[: min(MATRIX, np.isfinite(shares).sum())]  # NaN comes last
    title = max(map(len, (f"of {len(classes)}", *(classes[k] for k in order))))
    lines = [f"{f'of {len(classes)}':>{title}}  accuracy  taken for"]
    for k in order:
        wrong = result.confusion[k].copy()
        count, wrong[k] = wrong.sum(), 0
        most = np.argsort(-wrong, kind="stable")[:3]
        taken = ", ".join(f"{classes[j]} {100 * wrong[j] / count:.0f} %" for j in most if wrong[j])
        lines.append(f"{classes[k]:>{title}}  {shares[k]:8.4f}  {taken}")
    return lines


def draw_confusion(
    result: Evaluation, classes: tuple[str, ...], path: str | Path, title: str, check: Check = None
) -> bool:
    """Draw the confusion matrix in per cent of each class, as a PNG; False where matplotlib cannot be imported.

    `check` is as in `atomic_file`.

    Raises:
        OSError: the file could not be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    share = 100 * result.confusion / np.maximum(result.confusion.sum(axis=1, keepdims=True), 1)
    few = len(classes) <= MATRIX
    side = 8.5 if few else 17.0
    figure = Figure(figsize=(side, side - 1), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)  # not pyplot: a library leaves the caller's figures and backend alone
    axes: Any = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(share) if few else ():
        colour = "white" if value > 55 else "#222222"
        text = f"{value:.1f}" if value else ""
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    if len(classes) <= 10 * MATRIX:
        size = 10 if few else max(3, 900 / len(classes))
        axes.set_xticks(
            range(len(classes)), classes, rotation=35 if few else 90, ha="right" if few else "center", size=size
        )
        axes.set_yticks(range(len(classes)), classes, size=size)
    axes.set_xlabel("taken for, % of the class")
    axes.set_ylabel("class")
    axes.set_title(title, fontsize=12, parse_math=False)
    with atomic_file(path, check=check) as file:
        canvas.print_png(file)
    return True
