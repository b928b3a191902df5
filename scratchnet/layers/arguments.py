"""Arguments that PyTorch's layers take and these do not: code that is brought over gets one sentence, and no guess.

An argument whose value changes nothing here is accepted: `Conv2d(…, padding_mode="zeros", device=None)`. Any other value
raises a ValueError that says what to do instead. A name that PyTorch does not know either stays Python's TypeError.
"""

import functools

from scratchnet.device import is_array

DEVICE = (None, "cpu"), "layers are made on the CPU: move the whole network with model.to('cuda')"
REDUCTIONS = (None, True), "PyTorch gave it up too: say reduction='mean' or reduction='sum'"


def pytorch_arguments(**answers):
    """A decorator for a layer's class: its constructor answers for arguments of PyTorch's that it does not have.

    Args:
        answers: for each name the values that change nothing here, and what to do instead of any other.
    """

    def decorate(layer):
        construct = layer.__init__

        @functools.wraps(construct)  # so that its signature stays what it is
        def answering(self, *args, **options):
            for name in [name for name in options if name in answers]:
                accept(self.name, name, options.pop(name), *answers[name])
            construct(self, *args, **options)

        layer.__init__ = answering
        return layer

    return decorate


def accept(layer, name, value, harmless, instead):
    """Raise ValueError unless the value of an argument is one of those that change nothing here."""
    if is_array(value) or value not in harmless:
        raise ValueError(f"{layer}: {name}={value!r} is not offered: {instead}")


def ignore_inplace(layer, inplace):
    """Take PyTorch's `inplace`, and do nothing about it; raise TypeError for what is no bool, and so was meant otherwise.

    Nobody here writes into an array that another layer made. What `inplace` would save is memory: kernels save it by
    computing neighbouring layers as one (`scratchnet.plan`). The values are the same.
    """
    if not isinstance(inplace, bool):
        raise TypeError(
            f"{layer}: inplace must be True or False (it is accepted, and changes nothing), got {inplace!r}"
        )
