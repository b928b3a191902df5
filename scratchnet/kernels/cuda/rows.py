"""What many kernels share: the sum of what the blocks of a row left, and numbers rounded to bfloat16 and back.

Activations in bfloat16 halve what a GPU has to move. They and their gradients are stored in 16 bits, from the pictures to
the last feature map. Parameters, their gradients, batch norm's statistics and every sum are float32, and so is all that
comes behind the global pooling. A matrix product takes both factors in bfloat16, adds up in float32 and rounds once;
weights are rounded on the way to it.
"""

import math

from scratchnet.array import as_images, as_maps
from scratchnet.device import bfloat16_dtype, get_array_module, is_bfloat16
from scratchnet.kernels.cuda import many
from scratchnet.kernels.cuda.launch import THREADS, blocks, launch, sum_dtype


def row_sums_of(parts):
    """The sum over blocks of parts (C, blocks, …), as (C, …)."""
    if parts.shape[1] == 1:
        return parts[:, 0]
    out = get_array_module(parts).empty((len(parts), *parts.shape[2:]), parts.dtype)
    width = max(1, out.size // len(parts))
    combine("combine_sums", parts, out, parts.shape[1], width)
    return out


def combine(name, parts, *args):
    """Launch a second pass over parts (C, blocks, …): a block a channel, with a thread a part up to a full block."""
    channels, count = parts.shape[:2]
    launch(name, (), (1, channels), parts, *args, threads=min(THREADS, 32 * math.ceil(count / 32)))


def narrow(x):
    """Float32 x, rounded to bfloat16."""
    y = get_array_module(x).empty(x.shape, bfloat16_dtype())
    launch("narrow", (), blocks(x.size), x, y, x.size, dtype="bfloat16")
    return y


def stored_like(weight, x):
    """A weight, as a factor of a matrix product with x."""
    if not is_bfloat16(x) or is_bfloat16(weight):
        return weight
    found = many.in_bfloat16(weight)
    return narrow(weight) if found is None else found


def widened(x):
    """x in float32 where it is stored in bfloat16; else x itself."""
    if not is_bfloat16(x):
        return x
    y = get_array_module(x).empty(x.shape, sum_dtype(x))
    launch("widen", (), blocks(x.size), x, y, x.size)
    return y


def stored_in_bfloat16(images):
    """One launch."""
    return as_images(narrow(as_maps(images)))
