"""How the cost of a picture changes with the batch, the picture's size, the width and the threads, beside PyTorch's.

    python benchmarks/scaling.py [--axis batch picture width threads] [--rounds 1] [--kernels numpy] [--json FILE]
                                                                                                     (extra `bench`)

The last two numbers say what became of the cost of one picture since the row before (of the same kernels), ours and that
of PyTorch's best: flat is 1.00. The axis of threads goes from 1 to all cores, with every kind of kernels. Where PyTorch
has "failed", its child crashed or did not end in time.
"""

import argparse
from pathlib import Path

from engines import begin, compare, line, spec
from machine import KERNELS, cores, save, thread_counts

THREADS = min(2, cores())
AXES = {
    "batch": [spec("cifar", 0.5, 32, batch, THREADS) for batch in (16, 32, 64, 128, 256, 512)],
    "picture": [spec("cifar", 0.5, size, 32, THREADS) for size in (32, 48, 64, 96)],
    "width": [spec("cifar", width, 32, 64, THREADS) for width in (0.25, 0.5, 0.75, 1.0, 1.4)],
    "threads": [spec("cifar", 0.5, 32, 128, threads) for threads in thread_counts()],
}
KEYS = {"batch": "batch", "picture": "size", "width": "width", "threads": "threads"}


def costs(row):
    """Milliseconds a picture: ours, and PyTorch's best where it has one."""
    names = f"scratchnet-{row['kernels']}", row["best_peer"].get("threads")
    return [row["ms_per_picture"][name] for name in names if name]


def main():
    """Print a table for each axis."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axis", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, help="else the best, and all on the axis of threads")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    chosen = {axis: args.kernels or (KERNELS if axis == "threads" else KERNELS[:1]) for axis in args.axis}
    measured = [which for which in KERNELS if any(which in some for some in chosen.values())]
    rows = []
    begin(measured, "1 to all" if args.axis == ["threads"] else THREADS, args.rounds)
    for axis, kernels in chosen.items():
        before: dict = {}
        for what in AXES[axis]:
            for row in compare(f"{axis} {what[KEYS[axis]]}", what, args.rounds, kernels):
                now = costs(row)
                growth = [f"{n / b:.2f}" for n, b in zip(now, before.get(row["kernels"], ()), strict=False)]
                print(line(row) + "  " + ", ".join(growth), flush=True)
                before[row["kernels"]] = now
                rows.append(row)
    save(args.json, rows, measured)


if __name__ == "__main__":
    main()
