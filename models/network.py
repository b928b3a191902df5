"""What the networks here share: a file says which of them it holds, and it is built again.

A file says so by its header, which `sn.save` and train_cifar.py write, or else, as a state_dict of PyTorch's, by the shapes
of its arrays.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

import scratchnet as sn
from scratchnet import weights
from scratchnet.training.archive import CheckpointError, shown
from scratchnet.training.schema import OBJECT, TEXT, Kind, check

FIRST_MODEL = "mobilenetv2"  # of runs whose configuration does not say which network it is: there was but this one
FLAGS = {"width_mult": "width"}  # arguments that train_cifar.py calls otherwise


class Network(sn.Sequential):
    """A chain of layers that knows the arguments that it was made with, as attributes of their names.

    Attributes:
        ARGUMENTS: what each argument of the constructor must be in a file's header, but for `OUTPUTS`.
        OUTPUTS: the argument that says how many outputs there are.
        NAMES: what `train_cifar.py --model` calls such networks, and the arguments that the name decides.
        BIASES: keys of which a state has one, an array with an element for each output.
    """

    ARGUMENTS: dict[str, Kind] = {}
    OUTPUTS = "num_classes"
    NAMES: dict[str, dict[str, Any]] = {}
    BIASES: tuple[str, ...] = ()
    OTHERWISE = ""  # what was tried where the header says nothing, for messages

    @classmethod
    def sizes(cls, outputs: int, **arguments: Any) -> dict[str, tuple[int, ...]]:
        """Key -> shape of the weights whose sizes leave no other size of such a network open."""
        raise NotImplementedError

    @classmethod
    def guesses(cls, state: dict[str, np.ndarray]) -> Iterable[dict[str, Any]]:
        """Arguments that a state without a header may have been made with, the likeliest first."""
        raise NotImplementedError

    def require_positive(self, num_classes, width_mult):
        """Raise ValueError unless there is a class and a channel."""
        if num_classes < 1 or not width_mult > 0:
            raise ValueError(
                f"{self.name}: num_classes and width_mult must be positive, got {num_classes!r} and {width_mult!r}"
            )

    def config(self):
        """The arguments that make such a network; `sn.save` writes them into the file."""
        return {name: getattr(self, name) for name in (self.OUTPUTS, *self.ARGUMENTS)}

    @classmethod
    def from_checkpoint(cls, path):
        """The network in a file, with its weights, in eval mode: `train()` it to go on with training.

        Args:
            path: what `sn.save` or train_cifar.py wrote, whose header says which network it is, or any other file that
                `sn.load` reads. In the latter the arrays' shapes say the sizes, and all else is as torchvision has it.

        Raises:
            CheckpointError: the file cannot be read, or holds no such network; one sentence that names it.
        """
        return build(path, (cls,))

    @classmethod
    def arguments_in(cls, state, header):
        """The constructor's arguments for the network in a file; raises ValueError where it holds none.

        The sizes that follow from them are compared with the file's before anything of these sizes is made.
        """
        outputs = next((state[key].size for key in cls.BIASES if key in state), 0)
        said = cls.said_by(header)
        for arguments in cls.guesses(state) if said is None else [said]:
            expected = cls.sizes(outputs, **arguments)
            if outputs and all(key in state and state[key].shape == shape for key, shape in expected.items()):
                return arguments | {cls.OUTPUTS: outputs}
        raise ValueError(f"its arrays do not have the sizes of a {cls.__name__} {said or cls.OTHERWISE}".rstrip())

    @classmethod
    def said_by(cls, header):
        """The arguments in a header, `OUTPUTS` left out; None where it says nothing of the kind.

        Raises:
            CheckpointError: the file holds another network, or an argument is not as it must be.
        """
        if "network" in header:
            check(header["network"], {"name": TEXT}, "'network'")
            if (name := header["network"]["name"]) != cls.__name__:
                raise CheckpointError(f"it holds a {name}, no {cls.__name__}")
            found = header["network"].get("arguments")
            check(found, cls.ARGUMENTS, "'arguments' in 'network' in its header")
            return {name: found[name] for name in cls.ARGUMENTS}
        if "config" not in header:
            return None
        check(header["config"], OBJECT, "'config' in its header")
        run = {"model": FIRST_MODEL} | header["config"]
        check(run, {"model": TEXT}, "'config' in its header")
        if run["model"] not in cls.NAMES:
            raise CheckpointError(f"it holds a {run['model']}, no {cls.__name__}")
        fixed = cls.NAMES[run["model"]]
        flags = {name: FLAGS.get(name, name) for name in cls.ARGUMENTS if name not in fixed}
        check(run, {flag: cls.ARGUMENTS[name] for name, flag in flags.items()}, "'config' in its header")
        return fixed | {name: run[flag] for name, flag in flags.items()}


def build(path, classes: Iterable[type[Network]]) -> Network:
    """The network in a file, which must be of one of these classes, with its weights, in eval mode.

    Raises:
        CheckpointError: as `Network.from_checkpoint`.
    """
    state, header = weights.read(path)
    reasons = []
    for cls in classes:
        try:
            made = cls(**cls.arguments_in(state, header), dtype=_dtype(state))
            made.load_state_dict(state)
        except ValueError as error:
            reasons.append(str(error))
        else:
            return made.eval()
    raise CheckpointError(f"{shown(path)} holds no such network: {'; '.join(reasons)}")


def _dtype(state):
    """Float64 where the file has it, so that no digit is lost; else float32."""
    return np.float64 if any(array.dtype == np.float64 for array in state.values()) else np.float32
