"""One training step (forward, loss, backward, SGD), or inference, against PyTorch's eager mode on the same cores.

    python benchmarks/train_step.py [--rounds 5] [--threads 2] [--case blog-32 …] [--json FILE]     (extra `bench`)
    python benchmarks/train_step.py --inference          logits of 1, 32 and 256 pictures, batch norm folded
    python benchmarks/train_step.py --profile            where the time of a step goes

Every engine runs in a child process of its own, one after another, several rounds, PyTorch in both its memory
formats; a round's ratio is PyTorch's better time over ours in that round, and the median of the rounds is reported,
so that what else the machine does falls on both. Peak memory is the child's largest resident set, less what it held
before the first step. Times are the median step.
"""

import argparse
from pathlib import Path

from engines import spec, table
from profile_step import profile

CASES = {  # name: (variant, width, picture size, batch)
    "blog-96": ("blog", 0.5, 96, 64),
    "blog-32": ("blog", 0.5, 32, 128),
    "cifar-0.5": ("cifar", 0.5, 32, 128),
    "cifar-1.0": ("cifar", 1.0, 32, 64),
}
BATCHES = (1, 32, 256)  # of inference


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--inference", action="store_true", help="measure inference instead of training")
    parser.add_argument("--profile", action="store_true", help="print a profile of scratchnet's step instead")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    cases = {name: spec(*CASES[name], args.threads) for name in args.case}
    if args.profile:
        for name, what in cases.items():
            print(name)
            print("\n".join(profile(what)))
        return
    if args.inference:
        cases = {
            f"{name}, batch {batch}": what | {"batch": batch, "training": False}
            for name, what in cases.items()
            for batch in BATCHES
        }
    table(cases, args.rounds, args.json)


if __name__ == "__main__":
    main()
