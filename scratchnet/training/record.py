"""The files of a run. last.npz is what the run has become; the others follow from it, and are set right when it goes on.

    last.npz      everything, the rows of metrics.csv and the hash of best.npz too
    best.npz      last.npz as it was after the best epoch, without rows: nothing that differs between two equal runs. It
                  is believed only where it has the hash that last.npz names: another one is of a run, or of a line of
                  this run, that was given up.
    metrics.csv, curves.png    what a reader looks at; never read again

After an epoch they are written in this order, so that after a kill between any two of them what is missing can be made
from last.npz. Of several ranks the first one reads and writes; the others wait, however long a disk takes, and know what it
has found.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scratchnet.parallel import ranks
from scratchnet.training import checkpoint
from scratchnet.training.archive import CheckpointError, content_hash, not_finite
from scratchnet.training.atomic import Check
from scratchnet.training.metrics import FIELDS, draw_curves, write_rows
from scratchnet.training.schema import OBJECT, SHA256, check, number, one_of, whole

BEST, METRICS, CURVES = "best.npz", "metrics.csv", "curves.png"
NO_BEST = {"epoch": 0, "val_acc": -1.0}


def _by_first_rank(method):
    """Let the first rank do it, and give all ranks what it returns and which epoch is now the best."""

    @functools.wraps(method)
    def everywhere(self, *args, **kwargs):
        def act():
            return method(self, *args, **kwargs), self.best, self._best_sha256

        found, self.best, self._best_sha256 = ranks.from_first(act)
        return found

    return everywhere


class Record:
    """What a run has come to, epoch by epoch, and its files in the folder `out`.

    Attributes:
        rows: of metrics.csv, one an epoch.
        best: the epoch that was best by validation, and its accuracy; epoch 0 where there is none.
        check_folder: as `atomic_file` takes it; for every file that is written.
    """

    def __init__(self, out: Path, title: str, say: Callable[[str], None]):
        self.out, self.title, self.say = out, title, say
        self.check_folder: Check = None
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] = dict(NO_BEST)
        self._best_sha256: str | None = None

    def add(self, row: dict[str, Any]) -> bool:
        """Take in an epoch's row; whether it is the best epoch so far."""
        self.rows.append(row)
        if is_best := row["val_acc"] > self.best["val_acc"]:
            self.best = {"epoch": row["epoch"], "val_acc": row["val_acc"]}
        return is_best

    @_by_first_rank
    def save(self, arrays: dict, header: dict, is_best: bool = False) -> None:
        """Write last.npz, keeping the one before it as last.previous.npz; then best.npz, where this state is the best."""
        if is_best:
            self._best_sha256 = content_hash(arrays, header)
        rows = [[row[field] for field in FIELDS] for row in self.rows]
        more = {"rows": rows, "best_sha256": self._best_sha256}
        checkpoint.save_rotating(self.out, arrays, header | more, self.check_folder)
        if is_best:
            checkpoint.save(self.out / BEST, arrays, header, self.check_folder)

    @_by_first_rank
    def show(self) -> None:
        """Write metrics.csv and curves.png."""
        write_rows(self.rows, self.out / METRICS, self.check_folder)
        draw_curves(self.rows, self.out / CURVES, self.title, self.check_folder)

    @_by_first_rank
    def load_best(self) -> tuple[dict, dict]:
        """What is in best.npz; raises CheckpointError where it is damaged, or not the one that belongs to last.npz."""
        arrays, header = checkpoint.load(self.out / BEST)
        if header["checkpoint"]["sha256"] != self._best_sha256:
            raise CheckpointError(f"{self.out / BEST} is not what this run had after epoch {self.best['epoch']}")
        return arrays, header

    @_by_first_rank
    def require_best(self, arrays: dict, header: dict) -> None:
        """See that best.npz is there; if not, write this state where it is the best one, or else say so and forget it."""
        try:
            if self.best["epoch"]:
                self.load_best()
        except CheckpointError as error:
            if isinstance(error.__cause__, MemoryError):  # says nothing of the file
                raise error.__cause__ from None
            if (header["epoch"], header["batch"]) == (self.best["epoch"], 0):
                self._best_sha256 = content_hash(arrays, header)
                checkpoint.save(self.out / BEST, arrays, header, self.check_folder)
            else:
                self.say(f"{error}: the best of the epochs so far is lost")
                self.best, self._best_sha256 = dict(NO_BEST), None

    def restore(self, header: dict) -> None:
        """Go on from the header of a last.npz, which `require_state` has found right."""
        self.rows = [dict(zip(FIELDS, row, strict=True)) for row in header["rows"]]
        self.best, self._best_sha256 = header["best"], header["best_sha256"]


def require_state(arrays: dict, header: dict, epochs: int, steps: int) -> None:
    """Refuse what cannot be the state of a run of so many epochs of so many steps: it may come from anywhere.

    Raises:
        CheckpointError: which field or array it is, and what would be right.
    """
    what = "the checkpoint's header"
    mean = [number(), whole()]
    check(header, {"epoch": whole(0, epochs), "batch": whole(0, steps), "config": OBJECT, "generator": OBJECT}, what)
    rows = [[whole(epoch, epoch), *[number()] * 7] for epoch in range(1, header["epoch"] + 1)]
    best = {"epoch": whole(0, header["epoch"]), "val_acc": number(-1, 1)}
    sums = {"loss": mean, "accuracy": mean, "seconds": number(0), "pictures": whole()}
    check(header, sums | {"rows": rows, "best": best}, what)
    check(header, {"best_sha256": SHA256 if header["best"]["epoch"] else one_of(None)}, what)
    if bad := not_finite(arrays):
        raise CheckpointError(f"the checkpoint's {bad} is not finite")
    for key, array in arrays.items():
        if array.dtype.kind == "i" and (array < 0).any():
            raise CheckpointError(f"the checkpoint's {key} is {array.min()}, expected a count, at least 0")
