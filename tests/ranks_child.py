"""train_cifar.py on a tiny network and few pictures, as one rank of several, with a fault at a step of a rank.

python ranks_child.py FAULT RANK STEP MARK FLAG …      MARK: a file that is written when it happens
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from runs import make_tiny

import scratchnet as sn
import train_cifar
from scratchnet.parallel import ranks
from scratchnet.training import trainer


def raising(error):
    def act(_model):
        raise error

    return act


def spoil(change):
    def act(model):
        weight = next(iter(model.parameters())).data
        weight.reshape(-1)[3] = change(weight.reshape(-1)[3])

    return act


def by_first(function):
    """A function that only the first rank calls."""

    def checked(*args):
        assert ranks.rank == 0, f"rank {ranks.rank} called {function.__name__}{args}"
        return function(*args)

    return checked


FAULTS = {
    "none": lambda _model: None,
    "kill": lambda _model: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda _model: os.kill(os.getpid(), signal.SIGTERM),
    "SIGINT": lambda _model: os.kill(os.getpid(), signal.SIGINT),
    "memory": raising(MemoryError("Unable to allocate 9 GiB")),
    "disk": raising(OSError(28, "No space left on device", "a/file")),
    "bug": raising(ZeroDivisionError("by nothing")),
    "hang": lambda _model: time.sleep(100),
    "nan": spoil(lambda weight: weight * float("nan")),
    "bit": spoil(lambda weight: weight * 1.001),
}


def main(fault, rank, step, mark, *flags):
    sn.use_kernels("numpy")  # nothing to compile
    make_tiny(SimpleNamespace(setattr=setattr))
    os.replace = by_first(os.replace)  # every file that is written comes in its place by this
    original, done = trainer.train_step, 0

    def counted(model, *args):
        nonlocal done
        done += 1
        if done == int(step) and ranks.rank == int(rank):
            Path(mark).touch()
            FAULTS[fault](model)
        return original(model, *args)

    trainer.train_step = counted
    return train_cifar.main(flags)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
