"""What a run measures: averages over an epoch, one CSV line an epoch, and the curves.

metrics.csv holds `FIELDS` in its first line and one line of numbers an epoch, epochs counted from 1. A line is whole
when it ends in a line feed. A run that is killed while it writes one leaves a torn line; it counts as not written, and
the next append removes it. A run that is killed between the line and the checkpoint would write the line a second time
when it is resumed: `MetricsLog.truncate_to` with the checkpoint's epoch is what a resuming run calls first.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scratchnet.training.atomic import atomic_file

FIELDS = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc", "lr", "seconds", "images_per_second")
_HEAD = ",".join(FIELDS) + "\n"


class MetricsLog:
    """The rows of metrics.csv; a row maps each of `FIELDS` to a number, the epoch to an int.

    Numbers are written with all their digits, so that reading gives the same floats.

    Raises:
        ValueError: the file has another header, or a whole line that is no row.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lines()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line, on the disk when this returns.

        Raises:
            ValueError: the row has other fields than `FIELDS`.
            OSError: the line could not be written.
        """
        if set(row) != set(FIELDS):
            raise ValueError(f"{self.path}: a row has the fields {', '.join(FIELDS)}, got {', '.join(map(str, row))}")
        line = ",".join([str(int(row["epoch"])), *(repr(float(row[field])) for field in FIELDS[1:])])
        lines = self._lines()
        whole = len("".join([_HEAD, *lines])) if self.path.exists() and self.path.stat().st_size else 0
        with open(self.path, "ab") as file:
            file.truncate(whole)  # drops a torn line
            file.write(f"{'' if whole else _HEAD}{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """The rows so far, oldest first; none where there is no file."""
        return [self._parse(line) for line in self._lines()]

    def truncate_to(self, epoch: int) -> None:
        """Drop the rows of epochs after `epoch`, and a torn line; the lines that stay keep their bytes."""
        if self.path.exists():
            kept = [line for line in self._lines() if self._parse(line)["epoch"] <= epoch]
            with atomic_file(self.path) as file:
                file.write("".join([_HEAD, *kept]).encode())

    def _lines(self) -> list[str]:
        """The whole lines after the header."""
        try:
            text = self.path.read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        if _HEAD.startswith(text):  # empty, or torn while the header was written
            return []
        head, *lines = text.splitlines(keepends=True)
        if head != _HEAD:
            raise ValueError(f"{self.path}: expected the first line {_HEAD.strip()!r}, got {head.strip()[:80]!r}")
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        for line in lines:
            self._parse(line)
        return lines

    def _parse(self, line: str) -> dict[str, Any]:
        try:
            epoch, *numbers = line.strip().split(",")
            return dict(zip(FIELDS, [int(epoch), *map(float, numbers)], strict=True))
        except ValueError:
            raise ValueError(f"{self.path}: expected {len(FIELDS)} numbers in a line, got {line.strip()[:80]!r}") from None
