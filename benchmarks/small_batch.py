"""What a picture costs in a small batch: 8, 16, 32 and 64 pictures on one thread; scratchnet and PyTorch.

    python benchmarks/small_batch.py [--case cifar-0.5 …] [--rounds 3] [--threads 1] [--json FILE]     (extra `bench`)

Where a batch is shared out over processes, each has a small one: what its pictures cost more than those of a batch of 64 is
lost. A round's ratio is the cost at a batch over the cost at 64 in that round, of the same engine; the median of the
rounds is shown. The goal is at most 1.25 at 8.
"""

import argparse
import statistics
from pathlib import Path

from engines import Failed, compile_once, engines, measure, spec
from machine import KERNELS, head, save

CASES = {"cifar-0.5": 0.5, "cifar-1.0": 1.0}  # widths
BATCHES = (8, 16, 32, 64)
SECONDS = 2.0  # each child measures for about so long


def compare(width, rounds, threads, kernels):
    """A row for each engine: milliseconds a picture and ratio to the largest batch, by batch."""
    costs: dict = {engine: {batch: [] for batch in BATCHES} for engine in engines(kernels)}
    failed: dict = {}
    for _ in range(rounds):
        for engine in [engine for engine in costs if engine not in failed]:
            try:
                for batch in BATCHES:  # one after the other: it is they that are compared
                    found = measure(engine, spec("cifar", width, 32, batch, threads), seconds=SECONDS)
                    costs[engine][batch].append(found["seconds"] / batch * 1e3)
            except Failed as why:
                failed[engine] = f"batch {batch}: {why}"
    for engine, of_batch in costs.items():
        row = {"engine": str(engine), "width": width, "threads": threads, "each_round": of_batch}
        if engine in failed:
            yield row | {"failed": failed[engine]}
            continue
        most = of_batch[BATCHES[-1]]
        ratios = {batch: [c / m for c, m in zip(some, most, strict=True)] for batch, some in of_batch.items()}
        yield row | {
            "ms_per_picture": {batch: statistics.median(some) for batch, some in of_batch.items()},
            "ratio": {batch: statistics.median(some) for batch, some in ratios.items()},
            "ratios": ratios,
        }


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS), help="a row for each")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    print(head(args.kernels))
    print(f"a training step; threads: {args.threads}, rounds: {args.rounds}")
    compile_once(args.kernels)
    batches = "".join(f"{batch:>9}" for batch in BATCHES)
    print(f"{'':<33} ms a picture at batch{'':<18}over that at {BATCHES[-1]}")
    print(f"{'case':<10} {'engine':<22} {batches}   {' '.join(f'{batch:>6}' for batch in BATCHES)}")
    rows = []
    for name in args.case:
        for row in compare(CASES[name], args.rounds, args.threads, args.kernels):
            rows.append({"case": name} | row)
            if "failed" in row:
                print(f"{name:<10} {row['engine']:<22} failed, {row['failed']}", flush=True)
                continue
            ms = "".join(f"{row['ms_per_picture'][batch]:>9.3f}" for batch in BATCHES)
            ratios = " ".join(f"{row['ratio'][batch]:>6.2f}" for batch in BATCHES)
            print(f"{name:<10} {row['engine']:<22} {ms}   {ratios}", flush=True)
    save(args.json, rows, args.kernels)


if __name__ == "__main__":
    main()
