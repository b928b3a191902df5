"""A convolution in groups is a dense one whose weight is 0 between the groups: from one weight to the other, and back.

Conv2d's path "dense" goes this way: slow, and so simple that the other paths can be held to it.
"""

from scratchnet.array import get_array_module


def block_diagonal(weight, groups):
    """The weight of the same convolution in one group: (O, C/groups, KH, KW) -> (O, C, KH, KW), zero between groups."""
    if groups == 1:
        return weight
    outs, ins = len(weight) // groups, weight.shape[1]
    dense = get_array_module(weight).zeros((groups, outs, groups, *weight.shape[1:]), weight.dtype)
    for g in range(groups):
        dense[g, :, g] = weight[g * outs : (g + 1) * outs]
    return dense.reshape(len(weight), groups * ins, *weight.shape[2:])


def diagonal_blocks(dense, groups):
    """The blocks of `block_diagonal`, of its gradient: (O, C, KH, KW) -> (O, C/groups, KH, KW)."""
    if groups == 1:
        return dense
    blocks = dense.reshape(groups, len(dense) // groups, groups, -1, *dense.shape[2:])
    return get_array_module(dense).concatenate([blocks[g, :, g] for g in range(groups)])
