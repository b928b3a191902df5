"""The pictures that a network gets most wrong: those whose right class it holds least likely, and takes for another."""

from typing import NamedTuple

import numpy as np

from scratchnet.array import to_device
from scratchnet.device import get_array_module
from scratchnet.layers.loss import log_softmax
from scratchnet.parallel import ranks


class Mistake(NamedTuple):
    """A picture of a data set, by its number; its class, the class that it was taken for, and the shares of both."""

    picture: int
    label: int
    said: int
    share: float
    share_said: float


class Worst:
    """Sees batches of predictions, `add(logits, labels)`; then `take` gives the worst of them.

    Args:
        batches: the `Batches` that they come from, in order.
        count: how many.
    """

    def __init__(self, batches, count):
        self.batches, self.count = batches, count
        self._seen: list = []  # arrays where the network is: nobody waits for a GPU before the end

    def add(self, logits, labels):
        """Take in a batch, this rank's share of it."""
        xp = get_array_module(logits)
        share = xp.exp(log_softmax(logits.T))  # (N, K) -> (K, N)
        self._seen.append((labels, logits.argmax(axis=1), share[labels, xp.arange(len(labels))], share.max(axis=0)))

    def take(self):
        """The `Mistake`s, the worst one first, of all ranks; each of them calls it. What was seen is forgotten."""
        rows, self._seen = [[to_device(array, "cpu") for array in batch] for batch in self._seen], []
        table = np.zeros((ranks.size, self.count, 1 + len(Mistake._fields)))
        if rows:
            label, said, *shares = (np.concatenate(column) for column in zip(*rows, strict=True))
            found = np.stack([np.ones(len(label)), self._numbers(), label, said, *shares], axis=1)
            wrong = found[label != said]
            worst = wrong[np.argsort(wrong[:, 4], kind="stable")[: self.count]]
            table[ranks.rank, : len(worst)] = worst
        table = ranks.sum_over_ranks(table).reshape(-1, table.shape[2])
        table = table[table[:, 0] == 1, 1:]
        order = np.lexsort((table[:, 0], table[:, 3]))[: self.count]
        return [Mistake(*map(int, row[:3]), *map(float, row[3:])) for row in table[order]]

    def _numbers(self):
        """Which pictures this rank has seen."""
        count, size = len(self.batches.dataset.labels), self.batches.batch_size
        batches = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
        return np.concatenate([batch[ranks.share(len(batch))] for batch in batches])
