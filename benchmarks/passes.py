"""How often a training step goes over memory: counted from what the kernels do, not timed.

    python benchmarks/passes.py [--case cifar-1.0 cifar-0.5] [--batch 64] [--cache MIB] [--json FILE]

The steps and their shapes come from the network's plan; how often each of a step's arrays is read and written stands in
TABLE below, for every function and version, from reading its source. A function that is not there ends the program.

A cell says reads+writes of whole arrays, of three kinds: *expansion*, what a 1×1 convolution widens to, or a depthwise one
reads; *depthwise*, what a depthwise convolution writes; *narrow*, all others. Reads of a piece (a channel, a slab, a panel)
that was touched just before are counted as served by a cache, in the column `again`; `piece` is how large that cache has to
be, in MiB a thread, for the largest such step. With --cache they are counted as reads of memory where the piece is larger
than that. A write is counted once; what the CPU reads in order to write is not. Arrays that live in a piece alone are not
counted.
"""

import argparse
import math
from pathlib import Path
from typing import NamedTuple

from engines import spec
from machine import KERNELS, head, save
from profile_step import batch_for

import scratchnet as sn
from scratchnet.kernels.cpu.products import PANEL_BYTES
from scratchnet.parallel.cuts import SLAB_BYTES, few_rows
from scratchnet.plan import plan
from scratchnet.steps import Fork, Join
from scratchnet.trace import trace_step

CASES = {"cifar-1.0": 1.0, "cifar-0.5": 0.5}  # widths
ITEM = 4  # bytes of a number
PARAMETER_PASSES = 6 + 4  # weight read forward and backward, grad += (r w), SGD (3 r, 2 w), zero_grad (w)


class Passes(NamedTuple):
    """Over one array: reads and writes of memory, and further passes over a piece of it that is still in a cache."""

    read: int = 0
    write: int = 0
    again: int = 0


class Kernel(NamedTuple):
    """What a pair of functions does with its arrays.

    Names say the size: x, xc, dx what goes in; e, de a front's expansion; w what a block's depthwise convolution puts out;
    y, z, dy, dz, h what comes out; s a shortcut.
    """

    kinds: tuple[str, str]  # of what goes in and of what comes out
    forward: dict[str, Passes]
    backward: dict[str, Passes]
    piece: str = ""  # "channel", "rows", "slab" or "panel", over which it passes again
    stays: str = ""  # the arrays of which a piece has to stay in a cache


E, D, N = "expansion", "depthwise", "narrow"
r1, w1 = Passes(1), Passes(0, 1)
NOTHING: dict[str, Passes] = {}

TABLE: dict[tuple[str, str], Kernel] = {
    # 1×1 convolution, batch norm, ReLU6 (kernels/cpu/pointwise.py) ---------------------------------------------------
    ("conv_norm_relu6", "numpy"): Kernel(
        (N, E),
        # x: the means, then centred; xc: written, again for its sums and its covariance, then read by the product
        {"x": Passes(2), "xc": Passes(1, 1, 2), "y": w1},
        # a panel: mask (y twice), two products; then dx -= mix @ xc as a pass of its own
        {"dy": r1, "y": Passes(1, 0, 1), "xc": Passes(2), "dx": Passes(1, 2)},
        "panel", "dy y h xc dx",
    ),
    # Depthwise convolution, batch norm, ReLU6 (kernels/cpu/depthwise.py, kernels/compiled/depthwise.py) ----------------
    ("depthwise_norm_relu6", "numpy"): Kernel(
        (E, D),
        # x: three products read each row; z: sum, -=, vecdot, multiply; y: += and clip
        {"x": Passes(1, 0, 2), "z": Passes(0, 1, 4), "y": Passes(0, 1, 2)},
        # y: two comparisons; z: vecdot and multiply; x: nine dot products; h stays in the slab
        {"dy": r1, "y": Passes(1, 0, 1), "z": Passes(1, 0, 1), "x": Passes(1, 0, 8), "dx": Passes(0, 1, 2)},
        "slab", "dy y z h x dx",
    ),
    ("depthwise_norm_relu6", "compiled"): Kernel(
        (E, D),
        # z: written with its moments, then `scale_and_clip` of the same channel
        {"x": r1, "z": Passes(0, 1, 1), "y": w1},
        # "Two passes over dy and z, one over x and dx": `masked_sums`, then `make_h` of the same channel
        {"dy": Passes(1, 0, 1), "z": Passes(1, 0, 1), "x": r1, "dx": w1},
        "channel", "dy z",
    ),
    ("conv_norm_relu6", "compiled"): Kernel(
        (N, E),
        # x: mean, then centred; xc: by the product; z: written by it, then `moments` and `scale_and_clip` of these rows
        {"x": Passes(1, 0, 1), "xc": Passes(1, 1), "z": Passes(0, 1, 2), "y": w1},
        # dy, z: two sums, then dz; dz: by dW's product at once, later by dx's
        {"dy": Passes(1, 0, 1), "z": Passes(1, 0, 1), "dz": Passes(1, 1, 1), "xc": r1, "dx": w1},
        "rows", "dy z dz",
    ),
    # Expansion and depthwise convolution as one (kernels/compiled/front.py): of the expansion a slab, in the cache --------
    ("front", "compiled"): Kernel(
        (N, D),
        # x: mean, then centred; xc: by the product; z: written with its moments, then `scale_and_clip`
        {"x": Passes(1, 0, 1), "xc": Passes(1, 1), "z": Passes(0, 1, 1), "y": w1},
        # dy, z: sums, then h of the same channel; de: g, then dz1 in its place, dW's product at once, later dx's
        {"dy": Passes(1, 0, 1), "z": Passes(1, 0, 1), "de": Passes(1, 1, 3), "xc": Passes(1, 0, 1), "dx": w1},
        "rows", "e de",
    ),
    # A whole block (kernels/compiled/block.py): w is z2, what the depthwise convolution puts out -------------------------
    ("block", "compiled"): Kernel(
        (N, N),
        # w: written with its moments, read by the projection; z: `moments`, then y of the same channel
        {"x": Passes(1, 0, 1), "xc": Passes(1, 1), "w": Passes(1, 1), "z": Passes(1, 1, 1), "y": w1, "s": r1},
        # w: y2 again for dW, two sums, h; dz: by both products, once more for every slab; de: as in a front
        {"dy": Passes(1, 0, 1), "z": Passes(1, 0, 1), "dz": Passes(1, 1, 1), "w": Passes(1, 0, 2),
         "de": Passes(1, 1, 3), "xc": Passes(1, 0, 1), "dx": w1},
        "rows", "e de w w",
    ),
    # 1×1 convolution by itself (kernels/cpu/pointwise.py), and with batch norm and shortcut ------------------------------
    ("pointwise", "numpy"): Kernel(
        (D, N),
        {"x": r1, "y": w1},
        {"dy": Passes(2), "x": r1, "dx": w1},  # dy: one product for dW, one for dX
    ),
    ("pointwise", "compiled"): Kernel((D, N), {"x": Passes(1, 0, 1), "y": w1}, {"dy": Passes(2), "x": r1, "dx": w1}),
    ("project", "compiled"): Kernel(
        (D, N),
        # x: a panel copied, then multiplied; z: `moments`, then y of the same channel
        {"x": Passes(1, 0, 1), "z": Passes(1, 1, 1), "y": w1, "s": r1},
        # dy, z: two sums, then dz; dz, x: by both products together
        {"dy": Passes(1, 0, 1), "z": Passes(1, 0, 1), "dz": Passes(1, 1, 1), "x": Passes(1, 0, 1), "dx": w1},
        "channel", "dy z",
    ),
    # Batch norm by itself (kernels/cpu/norm.py, kernels/compiled/norm.py) -------------------------------------------
    ("batch_norm", "numpy"): Kernel(
        (N, N),
        {"x": Passes(1, 0, 1), "y": Passes(0, 1, 3)},  # "sum, centre, sum of squares, scale, shift"
        {"x": r1, "dy": Passes(1, 0, 2), "dx": Passes(0, 1, 4)},  # dy: sum, vecdot, scaled; dx: made in five
        "slab", "x dy dx h",
    ),
    ("batch_norm", "compiled"): Kernel(
        (N, N),
        {"x": Passes(1, 0, 1), "y": w1},  # `moments`, then `scale`
        {"x": Passes(1, 0, 1), "dy": Passes(1, 0, 1), "dx": w1},  # "backward two": `products`, then `combine`
        "channel", "x dy",
    ),
    # ReLU6 (kernels/cpu/activation.py, kernels/compiled/activation.py) -----------------------------------------------
    ("relu6", "numpy"): Kernel(
        (N, N), {"x": r1, "y": w1}, {"dy": r1, "y": Passes(1, 0, 1), "dx": w1}, "slab", "dy y dx"
    ),
    ("relu6", "compiled"): Kernel((N, N), {"x": r1, "y": w1}, {"dy": r1, "y": r1, "dx": w1}),
    # Shortcuts: the sum at the end, forward; the sum where it begins, backward (kernels/cpu/activation.py) ---------------
    ("add", "numpy"): Kernel((N, N), {"x": r1, "s": r1, "y": w1}, NOTHING),
    ("fork", "numpy"): Kernel((N, N), NOTHING, {"dx": Passes(1, 1), "s": r1}),
    # The stem (kernels/cpu/dense.py): nine taps copy x into cols in the cache; dx in parts, which are then added ---------
    ("grouped", "numpy"): Kernel(
        (N, N),
        {"x": Passes(1, 0, 8), "y": w1},
        {"x": Passes(1, 0, 8), "dy": Passes(1, 0, 1), "dx": Passes(2, 3, 9)},
        "panel", "x dx",
    ),
    # The stem, compiled (kernels/compiled/dense.py): the same by strips; dx in parts, gathered ---------------------------
    ("dense_norm_relu6", "compiled"): Kernel(
        (N, N),
        {"x": Passes(1, 0, 8), "z": Passes(1, 1, 1), "y": w1},
        {"dy": Passes(2), "z": Passes(2), "x": Passes(1, 0, 8), "dx": Passes(1, 2, 9)},
        "channel", "z",
    ),
    # The end of the network -----------------------------------------------------------------------------------------
    ("global_avg_pool2d", "numpy"): Kernel((E, N), {"x": r1, "y": w1}, {"dy": r1, "dx": w1}),
    ("global_avg_pool2d", "compiled"): Kernel((E, N), {"x": r1, "y": w1}, {"dy": r1, "dx": w1}),
    ("dropout", "plain"): Kernel((N, N), {"x": r1, "y": w1}, {"dy": r1, "dx": w1}),
    ("linear", "plain"): Kernel((N, N), {"x": r1, "y": w1}, {"dy": Passes(2), "x": r1, "dx": w1}),
}  # fmt: skip


class Step(NamedTuple):
    """A step of the plan: shapes (C, H, W) of what goes in, of a front's expansion, and of what comes out."""

    function: str
    version: str
    inside: tuple
    middle: tuple
    outside: tuple
    shortcut: bool = False

    def shape(self, array):
        """Of an array of `Kernel`."""
        sizes = {"x": self.inside, "e": self.middle, "w": (*self.middle[:1], *self.outside[1:])}
        return sizes.get(array[-1], self.inside if array == "xc" else self.outside)  # h, s

    def kind(self, array):
        """Expansion, depthwise or narrow."""
        inside, outside = TABLE[self.function, self.version].kinds
        return E if array in ("e", "de") else D if array == "w" else inside if array in ("x", "xc", "dx") else outside


# What a network does --------------------------------------------------------------------------------------------------


def steps_of(width, kernels):
    """The steps of a network, and how many parameters it has."""
    with sn.use_kernels(kernels):
        model, x, labels = batch_for(spec("cifar", width, 32, 2))
        lines = trace_step(model, sn.CrossEntropyLoss(), x, labels)
        steps = []
        for step, line in zip(plan(model).steps, lines, strict=True):
            function, version = ("fork", "numpy") if type(step) is Fork else (line.function, line.version)
            if function:  # Flatten has none
                middle = getattr(step.layers[0], "out_channels", 0), *line.shape_in[1:]
                ends = len(step.layers) > 1 and any(isinstance(layer, sn.Residual) for layer in step.layers)
                shortcut = ends or isinstance(step, Join)
                steps.append(Step(function, version, line.shape_in, middle, line.shape_out, shortcut))
    return steps, sum(parameter.data.size for parameter in model.parameters())


# Counting -------------------------------------------------------------------------------------------------------------


def piece_bytes(step, batch):
    """Bytes that have to stay in a core's cache, so that what is counted as `again` finds them there."""
    kernel = TABLE[step.function, step.version]
    shapes = [step.shape(array) for array in kernel.stays.split()]
    columns = math.prod(step.outside[1:]) * batch
    if kernel.piece == "channel":
        return sum(math.prod(shape[1:]) for shape in shapes) * batch * ITEM
    if kernel.piece == "rows":  # `cuts.few_rows`: of the expansion
        row = math.prod(step.middle[1:]) * batch * ITEM
        return len(shapes) * few_rows(step.middle[0], row) * row
    if kernel.piece == "slab":  # `cuts.slabs`: of x, in an even number
        count = max(2, -(-math.prod(step.inside) * batch * ITEM // SLAB_BYTES))
        channels = -(-step.inside[0] // (count + count % 2))
        return sum(math.prod(shape[1:]) for shape in shapes) * batch * ITEM * channels
    if kernel.piece == "panel":  # `cuts.panels`: of the wider array
        width = min(columns, max(64, PANEL_BYTES // (step.outside[0] * ITEM)))
        return sum(shape[0] for shape in shapes) * width * ITEM
    return 0


def count(step, batch, cache):
    """Reads, writes and cached reads by (direction, kind), and bytes of memory a picture by direction."""
    kernel = TABLE.get((step.function, step.version))
    if kernel is None:
        raise SystemExit(f"passes.py: nothing is declared for {step.function}, {step.version}: add it to TABLE")
    spills = cache is not None and piece_bytes(step, batch) > cache
    passes: dict = {}
    moved = {}
    for direction in ("forward", "backward"):
        moved[direction] = 0
        for array, (read, write, again) in getattr(kernel, direction).items():
            if array == "s" and not (step.shortcut or step.function == "fork"):
                continue
            read, again = (read + again, 0) if spills else (read, again)
            moved[direction] += (read + write) * math.prod(step.shape(array)) * ITEM
            before = passes.get((direction, step.kind(array)), Passes())
            found = read, write, again
            passes[direction, step.kind(array)] = Passes(*(b + f for b, f in zip(before, found, strict=True)))
    return passes, moved


def table(steps, parameters, batch, cache):
    """A row for each kind of step, in the order of the network; at the end the parameters."""
    rows: dict = {}
    for step in steps:
        passes, moved = count(step, batch, cache)
        name = step.function + (" + shortcut" if step.function in ("project", "block") and step.shortcut else "")
        key = name, step.version, tuple(sorted(passes.items()))
        row = rows.setdefault(key, {"count": 0, "forward": 0, "backward": 0, "piece": 0})
        row["count"] += 1
        row["piece"] = max(row["piece"], piece_bytes(step, batch))
        for direction, of_step in moved.items():
            row[direction] += of_step
    found = []
    for (function, version, passes), row in rows.items():
        again = sum(number.again for _, number in passes)
        cells = {f"{direction}, {kind}": number[:2] for (direction, kind), number in passes}
        found.append({"function": function, "version": version, **row, "passes": cells, "again": again})
    each = PARAMETER_PASSES * parameters * ITEM / batch
    sums = {"count": 1, "forward": each / PARAMETER_PASSES, "piece": 0, "passes": {}, "again": 0}
    sums["backward"] = each - sums["forward"]
    return [*found, {"function": "parameters, SGD", "version": "", **sums}]


COLUMNS = [f"{direction}, {kind}" for direction in ("forward", "backward") for kind in (E, D, N)]
HEAD = (
    f"{'':<38} {'forward: reads+writes of':<29} {'backward: reads+writes of':<29} {'':<5} {'MB a picture':<24}\n"
    f"{'function':<22} {'version':<9} {'steps':>5} "
    + " ".join(f"{kind:>9}" for kind in (E, D, N) * 2)
    + f" {'again':>6} {'forward':>8} {'backward':>8} {'share':>6} {'piece':>6}"
)


def show(rows):
    """Print them; return the sum of bytes a picture."""
    total = sum(row["forward"] + row["backward"] for row in rows)
    print(HEAD)
    for row in rows:
        cells = ("+".join(map(str, row["passes"][c])) if c in row["passes"] else "" for c in COLUMNS)
        moved = row["forward"], row["backward"]
        piece = f"{row['piece'] / 2**20:.2f}" if row["piece"] else ""
        print(
            f"{row['function']:<22} {row['version']:<9} {row['count']:>5} {' '.join(f'{c:>9}' for c in cells)} "
            f"{row['again'] or '':>6} {moved[0] / 1e6:>8.2f} {moved[1] / 1e6:>8.2f} {sum(moved) / total:>6.1%} {piece:>6}"
        )
    forward, backward = (sum(row[direction] for row in rows) / 1e6 for direction in ("forward", "backward"))
    print(f"{'sum':<38} {'':<59} {'':>6} {forward:>8.2f} {backward:>8.2f}")
    return total


def main():
    """Print a table for each case and kind of kernels, and what all of them move."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--cache", type=float, help="MiB of a core's cache: larger pieces are read from memory again")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    print(head())
    cache = None if args.cache is None else args.cache * 2**20
    found, rows = {}, []
    for case in args.case:
        for which in reversed(KERNELS):
            steps, parameters = steps_of(CASES[case], which)
            print(f"\n{case}, batch {args.batch}, {which}")
            lines = table(steps, parameters, args.batch, cache)
            found[case, which] = show(lines)
            rows.append({"case": case, "kernels": which, "batch": args.batch, "cache_mib": args.cache, "steps": lines})
    print("\nMB a picture, and over those of NumPy's kernels")
    for (case, which), total in found.items():
        print(f"{case:<10} {which:<28} {total / 1e6:>8.2f} {total / found[case, 'numpy']:>6.2f}×")
    save(args.json, rows)


if __name__ == "__main__":
    main()
