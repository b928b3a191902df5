"""The network as a column: its layers in the order of forward, folded into the blocks that they belong to.

A container of layers is a block, and all that is in it, however deep, are its rows. One of containers only, such as a
stage of blocks, is no block but a heading above them; one with a single thing in it is looked through.
"""

from scratchnet.branches import Branches
from scratchnet.sequential import Sequential


def is_heading(module):
    """Whether a module is a chain of containers."""
    children = [child for _, child in module.named_children()]
    plain = type(module).forward is Sequential.forward and not isinstance(module, Branches)
    return plain and len(children) > 1 and all(child.named_children() for child in children)


def place(model, name):
    """([dotted name of each heading above it], dotted name of its block or None, the block's class) of a layer."""
    headings: list[str] = []
    module, path = model, []
    for part in filter(None, name.split(".")):
        module = getattr(module, part)
        path.append(part)
        if not module.named_children():
            break
        if not is_heading(module):
            return headings, ".".join(path), module.name
        headings.append(".".join(path))
    return headings, None, ""


def column_of(model, layers):
    """[{"heading": name} or {"block": name, "kind": class, "layers": [number, …]}], in order; a layer alone has no name."""
    rows: list[dict] = []
    before: list[str] = []
    for number, layer in enumerate(layers):
        headings, block, kind = place(model, layer.name)
        rows += [{"heading": name, "depth": k} for k, name in enumerate(headings) if name not in before]
        if headings != before or not rows or rows[-1].get("block") != block:
            rows.append({"block": block, "kind": kind, "layers": []})
        before = headings
        rows[-1]["layers"].append(number)
    return rows
