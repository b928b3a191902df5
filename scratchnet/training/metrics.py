"""What a run measures: averages over an epoch, one CSV line an epoch, and the curves.

metrics.csv holds `FIELDS` in its first line and one line of numbers an epoch, epochs counted from 1. It is written only:
the rows themselves are in the run's checkpoints, so that whatever happened to the file, the next write sets it right.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scratchnet.training.atomic import Check, atomic_file

FIELDS = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc", "lr", "seconds", "images_per_second")


def write_rows(rows: Sequence[Mapping[str, Any]], path: str | Path, check: Check = None) -> None:
    """Write metrics.csv, as a whole.

    Args:
        rows: oldest first; each maps each of `FIELDS` to a number, the epoch to an int. Numbers are written with all
            their digits, so that reading gives the same floats.
        path: of the file.
        check: as `atomic_file` takes it.

    Raises:
        ValueError: a row has other fields than `FIELDS`.
        OSError: the file could not be written; it is as it was.
    """
    lines = [",".join(FIELDS)]
    for row in rows:
        if set(row) != set(FIELDS):
            raise ValueError(f"{path}: a row has the fields {', '.join(FIELDS)}, got {', '.join(map(str, row))}")
        numbers = (repr(float(row[field])) for field in FIELDS[1:])
        lines.append(",".join([str(operator.index(row["epoch"])), *numbers]))
    with atomic_file(path, check=check) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())


class Average:
    """The mean of a per-picture measure over batches of different sizes.

    A batch's value may be a 0-d array on a GPU: it is summed there, in float64, and only reading `value` waits for it.
    """

    def __init__(self) -> None:
        self.sum: Any = 0.0
        self.count = 0
        self._before = 0.0, 0  # when `recent` was last asked for

    def add(self, value: Any, count: int) -> None:
        """Take in the mean over `count` pictures, at least 1."""
        if count < 1:
            raise ValueError(f"Average: count must be at least 1, got {count}")
        exact = value.astype("float64") if hasattr(value, "astype") else float(value)
        self.sum = self.sum + exact * float(count)
        self.count += int(count)

    @property
    def value(self) -> float:
        """The mean over all pictures so far; NaN before the first."""
        return float(self.sum) / self.count if self.count else math.nan

    def recent(self) -> float:
        """The mean over the pictures that came since this was last asked for; NaN where none did."""
        (before, seen), self._before = self._before, (float(self.sum), self.count)
        return (self._before[0] - before) / (self.count - seen) if self.count > seen else math.nan


def draw_curves(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str, check: Check = None) -> bool:
    """Draw loss, accuracy, learning rate and pictures a second over the epochs, as a PNG of 1200 × 750 pixels.

    Args:
        rows: as `write_rows` takes them.
        path: the PNG, replaced as a whole.
        title: one line, shown as it is.
        check: as `atomic_file` takes it.

    Returns:
        Whether it was drawn: not without rows, and not where matplotlib cannot be imported.

    Raises:
        OSError: the file could not be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return False
    if not rows:
        return False
    figure = Figure(figsize=(12, 7.5), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    canvas = FigureCanvasAgg(figure)  # not pyplot: a library leaves the caller's figures and backend alone
    figure.suptitle(title, fontsize=14, fontweight="bold", parse_math=False)
    epochs = [row["epoch"] for row in rows]
    for axes, (name, fields, scale, best) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        for field, label, colour in fields:
            values = [scale * row[field] for row in rows]
            marker = "o" if len(rows) <= 40 else None  # one epoch is a point, and no line
            text = label + _best(epochs, values, best) if best else label
            axes.plot(epochs, values, label=text, color=colour, marker=marker, markersize=4, linewidth=1.8)
        axes.set_title(name, loc="left", fontsize=12)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter("{x:.6g}")
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.set_xlabel("epoch")
        if best:
            axes.legend(frameon=False)
        else:  # a quantity whose distance from 0 matters
            axes.set_ylim(0, 1.1 * max([*filter(math.isfinite, values)], default=0) or 1)
    with atomic_file(path, check=check) as file:
        canvas.print_png(file)
    return True


def _best(epochs: Sequence[int], values: Sequence[float], best: Callable[..., tuple[float, int]]) -> str:
    """`best` (min or max) of the values and its epoch, in words, NaN and infinity left out."""
    pairs = [(value, epoch) for value, epoch in zip(values, epochs, strict=True) if math.isfinite(value)]
    if not pairs:
        return ""
    value, epoch = best(pairs, key=lambda pair: pair[0])
    return f", best {value:.4g} in epoch {epoch}"


_BLUE, _ORANGE, _GREY = "#1f77b4", "#d95f02", "#444444"
# title of the panel, (field, label, colour) of its curves, factor, which value is best
_PANELS: tuple[tuple[str, tuple[tuple[str, str, str], ...], float, Any], ...] = (
    ("Loss", (("train_loss", "train", _BLUE), ("val_loss", "validation", _ORANGE)), 1, min),
    ("Accuracy, %", (("train_acc", "train", _BLUE), ("val_acc", "validation", _ORANGE)), 100, max),
    ("Learning rate", (("lr", "", _GREY),), 1, None),
    ("Pictures a second", (("images_per_second", "", _GREY),), 1, None),
)
