"""A convolution in groups is a dense one whose weight is 0 wherever an output would read another group's input.

From one weight to the other, and back. Conv2d's path "dense" takes this way: slow, and so simple that the other paths can
be held to it.
"""

from scratchnet.device import get_array_module


def block_diagonal(weight, groups):
    """The weight of the same convolution in one group: (O, C/groups, KH, KW) -> (O, C, KH, KW), zero between groups."""
    if groups == 1:
        return weight
    blocks = weight.reshape(groups, -1, *weight.shape[1:])  # (G, O/G, C/G, KH, KW)
    dense = get_array_module(weight).zeros((*blocks.shape[:2], groups, *blocks.shape[2:]), weight.dtype)
    group = get_array_module(weight).arange(groups)
    dense[group, :, group] = blocks  # group g of the outputs reads group g of the inputs
    return dense.reshape(len(weight), -1, *weight.shape[2:])


def diagonal_blocks(dense, groups):
    """The blocks of `block_diagonal`, of its gradient: (O, C, KH, KW) -> (O, C/groups, KH, KW)."""
    if groups == 1:
        return dense
    group = get_array_module(dense).arange(groups)
    blocks = dense.reshape(groups, len(dense) // groups, groups, -1, *dense.shape[2:])[group, :, group]
    return blocks.reshape(len(dense), -1, *dense.shape[2:])
