"""The explorer: one training step of a network, put into one HTML file, to look at layer by layer.

`python -m scratchnet.explore CHECKPOINT -o page.html` writes it; `explore` does so from Python, and `demo` for a small
network that it trains on drawn shapes. The file loads nothing and works where there is no network.

What is in here, in the order in which it runs: subject.py reads a network and its pictures, step.py takes the step,
check.py checks each layer's gradient at what the layer got, text.py finds its derivation and its code, column.py folds the
network into blocks, pack.py makes heat maps of a byte a number, page.py puts all of it into page.html.
"""

import os
from typing import Any

from scratchnet.explore.page import MOST_BYTES, write_page
from scratchnet.explore.small import demo
from scratchnet.explore.subject import read_subject


def explore(
    checkpoint: str | os.PathLike[str], path: str | os.PathLike[str], shown: int = 4, **options: Any
) -> tuple[int, int]:
    """Write the page of a network in a file; returns (bytes, channels kept of each array).

    Args:
        checkpoint: what `from_checkpoint` reads.
        path: the file to write.
        shown: how many pictures can be looked at.
        options: `data`, `pictures`, `batch_size` and `lr` of `read_subject`.

    Raises:
        CheckpointError, DataError, PictureError, UsageError: something cannot be had.
        FloatingPointError: a number of the step is not finite.
        OSError: the file could not be written.
    """
    pictures = list(dict.fromkeys(options.get("pictures", (0,))))
    shown = len(pictures) if len(pictures) > 1 else shown
    return write_page(read_subject(checkpoint, count=shown, **options), path, shown, MOST_BYTES)


__all__ = ["demo", "explore"]
