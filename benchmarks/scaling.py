"""How the cost of a picture changes with the batch, the picture's size, the width and the threads, beside PyTorch's.

    python benchmarks/scaling.py [--axis batch picture width threads] [--rounds 1] [--json FILE]     (extra `bench`)

The last three columns say what became of the cost of one picture since the row before: flat is 1.00. Where PyTorch has
"failed", its child crashed or did not end in time.
"""

import argparse
import json
from pathlib import Path

from engines import HEAD, compare, line, spec

AXES = {
    "batch": [spec("cifar", 0.5, 32, batch) for batch in (16, 32, 64, 128, 256, 512)],
    "picture": [spec("cifar", 0.5, size, 32) for size in (32, 48, 64, 96)],
    "width": [spec("cifar", width, 32, 64) for width in (0.25, 0.5, 0.75, 1.0, 1.4)],
    "threads": [spec("cifar", 0.5, 32, 128, threads) for threads in (1, 2)],
}
KEYS = {"batch": "batch", "picture": "size", "width": "width", "threads": "threads"}


def main():
    """Print a table for each axis."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axis", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    rows = []
    print(HEAD + "  cost since the row before: ours, PyTorch's best")
    for axis in args.axis:
        before = None
        for what in AXES[axis]:
            row = compare(f"{axis} {what[KEYS[axis]]}", what, args.rounds)
            best = row["ms_per_picture"][row["best_peer"]]
            now = row["ms_per_picture"]["scratchnet"], best
            growth = (
                "" if before is None else "  " + ", ".join(f"{n / b:.2f}" for n, b in zip(now, before, strict=True))
            )
            print(line(row) + growth, flush=True)
            before = now
            rows.append(row)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
