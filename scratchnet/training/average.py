"""The running average of the weights: steadier than the weights themselves, and often better on the test.

    d_t = min(decay, (1 + t) / (10 + t))        the average forgets the first, wild steps quickly           (EMA.1)
    ā   = d_t · ā + (1 - d_t) · w               after step t = 1, 2, …, for every weight and running statistic  (EMA.2)

Polyak and Juditsky 1992 average all steps alike; the exponential form and the warm-up (EMA.1) are TensorFlow's
`ExponentialMovingAverage`. Counters, which are no floating-point numbers, are copied.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from scratchnet.array import to_device
from scratchnet.device import device_of
from scratchnet.module import Module

WARM_UP = 10  # of (EMA.1)


class WeightAverage:
    """The average of a network's parameters and buffers, on the network's device.

    Args:
        model: starts as a copy of its weights.
        decay: in [0, 1): 0.999 looks back over some thousand steps.

    Raises:
        ValueError: decay is not in [0, 1).
    """

    def __init__(self, model: Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"WeightAverage: decay must be in [0, 1), got {decay}")
        self.model, self.decay, self.updates = model, float(decay), 0
        self._average = {key: value.copy() for key, value in model.state_dict().items()}

    def update(self) -> None:
        """Take in the weights as they are now; called after every step of the optimizer."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (WARM_UP + self.updates))  # (EMA.1)
        for key, value in self.model.state_dict().items():
            average = self._average[key]
            if value.dtype.kind in "fc":
                average *= decay
                average += (1 - decay) * value  # (EMA.2)
            else:
                average[...] = value

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the network has the averaged weights; afterwards its own again, bit for bit."""
        own = {key: value.copy() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(self._average)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """The averages by the network's keys, copied, and "updates", an int64 array of shape ()."""
        state = {key: value.copy() for key, value in self._average.items()}
        return state | {"updates": np.array(self.updates, np.int64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; the caller has checked that keys and shapes fit."""
        for key, average in self._average.items():
            average[...] = to_device(state[key], device_of(average))
        self.updates = int(state["updates"])
