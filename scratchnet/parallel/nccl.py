"""Sums over ranks that stay on the cards, by NCCL as CuPy has it: for the gradients, the one message that is large.

A card gathers what all ranks have and adds it up in the order of the ranks, as the host does (ranks.py): the bits are the
same. Who waits on a card cannot be told why. So the ranks meet on the host first, where every wait has an end.
"""

import hashlib

import numpy as np

from scratchnet.device import get_array_module

TYPES = {"float32": "NCCL_FLOAT32", "float64": "NCCL_FLOAT64"}


def join(world, machine, like):
    """The `Cards` for arrays that lie where `like` does; None where CuPy has no NCCL, or two ranks have one card.

    Every rank calls it, and all get one or none does.
    """
    cupy = get_array_module(like)
    nccl, card = getattr(cupy.cuda, "nccl", None), b""
    if nccl is not None and nccl.available:
        name = machine, cupy.cuda.runtime.deviceGetPCIBusId(cupy.cuda.Device().id)
        card = hashlib.sha256(repr(name).encode()).digest()
    found = [other.tobytes() for other in world.gather(np.frombuffer(card.ljust(32, b"\0"), np.uint8))]
    if bytes(32) in found or len(set(found)) < world.size:
        return None
    return Cards(cupy, world, world.from_first(cupy.cuda.nccl.get_unique_id, world.limit))


class Cards:
    """What sums the ranks' arrays on their cards."""

    def __init__(self, cupy, world, identifier):
        self.cupy, self.world = cupy, world
        self.communicator = cupy.cuda.nccl.NcclCommunicator(world.size, identifier, world.rank)

    def sum(self, array):
        """Make the array the sum of every rank's, in the order of the ranks, one after the other."""
        self.world.gather(np.zeros(1, np.uint8))
        found = self.cupy.empty((self.world.size, *array.shape), array.dtype)
        kind, stream = getattr(self.cupy.cuda.nccl, TYPES[array.dtype.name]), self.cupy.cuda.get_current_stream()
        self.communicator.allGather(array.data.ptr, found.data.ptr, array.size, kind, stream.ptr)
        array[...] = found[0]
        for other in range(1, self.world.size):
            array += found[other]
