"""One training step (forward, loss, backward, SGD), or inference, against PyTorch's eager mode on the same cores.

    python benchmarks/train_step.py [--rounds 5] [--case blog-32 …] [--kernels numpy] [--json FILE]     (extra `bench`)
    python benchmarks/train_step.py --modes threads      without several processes
    python benchmarks/train_step.py --inference          logits of 1, 32 and 256 pictures, batch norm folded
    python benchmarks/train_step.py --profile            where the time of a step goes

Every engine runs in child processes of its own, one engine after another, several rounds, PyTorch in both its memory
formats and in several modes (`engines.py`): threads, scratchnet's ranks, independent processes, DistributedDataParallel.
A round's ratio is PyTorch's better time over ours in that round, and the median of the rounds is reported, so that what
else the machine does falls on both. The ratio "best" is that of what a user can have: PyTorch's better of threads and DDP
over our better of threads and ranks. Peak memory is a child's largest resident set, less what it held before the first
step; of processes the sum. Times are the median step.
"""

import argparse
from pathlib import Path

from engines import MODES, spec, table
from machine import KERNELS, cores, head
from profile_step import profile

CASES = {  # name: (variant, width, picture size, batch)
    "blog-96": ("blog", 0.5, 96, 64),
    "blog-32": ("blog", 0.5, 32, 128),
    "cifar-0.5": ("cifar", 0.5, 32, 128),
    "cifar-1.0": ("cifar", 1.0, 32, 64),
    "resnet20": ("resnet20", 1.0, 32, 128),
}
BATCHES = (1, 32, 256)  # of inference


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores(), help="of an engine in one process; all cores")
    parser.add_argument("--processes", type=int, default=cores(), help="of an engine in processes; all cores")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS), help="a row for each")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="threads are always among them")
    parser.add_argument("--inference", action="store_true", help="measure inference instead of training, with threads")
    parser.add_argument("--profile", action="store_true", help="print a profile of scratchnet's step instead")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    cases = {name: spec(*CASES[name], args.threads) for name in args.case}
    if args.profile:
        print(head(args.kernels))
        for name, what in cases.items():
            for which in args.kernels:
                print(f"{name}, kernels {which}")
                print("\n".join(profile(what, which)))
        return
    modes = [mode for mode in MODES if mode == "threads" or mode in args.modes]
    if args.inference:
        modes = ["threads"]
        cases = {
            f"{name}, batch {batch}": what | {"batch": batch, "training": False}
            for name, what in cases.items()
            for batch in BATCHES
        }
    table(cases, args.rounds, args.json, kernels=args.kernels, modes=modes, processes=args.processes)


if __name__ == "__main__":
    main()
