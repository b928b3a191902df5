"""Ranks × threads at a fixed batch: pictures a second, what the exchange costs, beside PyTorch's threads and its DDP.

    python benchmarks/ranks.py [--case cifar-0.5 …] [--split 1x2 2x1 …] [--rounds 3] [--json FILE]      (extra `bench`)

A step is the trainer's: forward, loss, backward, the sum of the gradients, SGD, each rank with its share of the batch.
`alone` are as many independent processes with the same shares and threads, which exchange nothing; efficiency is the ranks'
speed over theirs. Messages, bytes and seconds are those of a step, of the rank that has most: bytes are what it hands over,
seconds are all in which it does not compute, so also those in which it waits for a slower one. How much of them is waiting
is measured in a run of its own, in which the ranks meet before each exchange: `waits` until all are there, `sends` then.
All engines take turns, several rounds; medians.
"""

import argparse
import statistics
from pathlib import Path

from engines import FORMATS, Engine, Failed, compile_once, measure, spec
from machine import KERNELS, cores, head, save
from train_step import CASES

HEAD = (
    f"{'':<12} {'':<9} {'ranks ×':>8} {'pictures/s':>11} {'alone':>7} {'effi-':>6} {'a step: mes-':>12} {'':>8} "
    f"{'exchange,':>10} {'share':>6} {'apart: waits,':>13} {'sends,':>7}   {'PyTorch, pictures/s':>20} {'ratio':>6}\n"
    f"{'case':<12} {'kernels':<9} {'threads':>8} {'':>11} {'':>7} {'ciency':>6} {'sages':>12} {'KB':>8} "
    f"{'ms':>10} {'':>6} {'ms':>13} {'ms':>7}   {'threads':>10} {'DDP':>9} {'DDP':>6}"
)


def splits():
    """(ranks, threads) that fill the cores: 1, 2, 4, … ranks, and one for each core."""
    counts = [1 << k for k in range(16) if 1 << k < cores()] + [cores()]
    return [(ranks, cores() // ranks) for ranks in counts]


def runs(which, ranks):
    """What is measured of a split: name, engines of which the fastest counts, and whether waiting is told apart."""
    if ranks == 1:
        return [("ranks", [Engine("scratchnet", which)], False)]
    return [
        ("ranks", [Engine("scratchnet", which, "ranks")], False),
        ("alone", [Engine("scratchnet", which, "processes")], False),
        ("apart", [Engine("scratchnet", which, "ranks")], True),
        ("ddp", [Engine("torch", layout, "ddp") for layout in FORMATS], False),
    ]


def case(name, which, chosen, rounds):
    """Rows of a case, one for each split."""
    found: dict = {}
    failed: dict = {}

    def take(key, engines, what, ranks, apart=False):
        for engine in engines:
            if (key, engine) not in failed:
                try:
                    measured = measure(engine, what, ranks, apart=apart)
                    found.setdefault(key, {}).setdefault(str(engine), []).append(measured)
                except Failed as why:
                    failed[key, engine] = str(why)

    for _ in range(rounds):
        for ranks, threads in chosen:
            for key, engines, apart in runs(which, ranks):
                take((ranks, threads, key), engines, spec(*CASES[name], ranks * threads), ranks, apart)
        take("torch", [Engine("torch", layout) for layout in FORMATS], spec(*CASES[name], cores()), 1)
    batch = CASES[name][3]
    for ranks, threads in chosen:
        of = {key: _best(found.get((ranks, threads, key))) for key in ("ranks", "alone", "apart", "ddp")}
        of["torch"] = _best(found.get("torch"))
        each = {key: [m["seconds"] for m in some] for key, some in of.items() if some}
        row = {
            "case": name, "kernels": which, "ranks": ranks, "threads": threads, "batch": batch,
            "pictures_per_second": {key: batch / statistics.median(some) for key, some in each.items()},
            "seconds": each,
            "traffic": {key: _medians(of[key]) for key in ("ranks", "apart") if of[key] and ranks > 1},
            "failed": {f"{key} {engine}": why for (key, engine), why in failed.items()},
        }  # fmt: skip
        for name_of, above, below in (("efficiency", "alone", "ranks"), ("ratio_ddp", "ddp", "ranks")):
            if above in each and below in each:
                row[name_of] = statistics.median(a / b for a, b in zip(each[above], each[below], strict=False))
        yield row


def _best(of_engines):
    """What the engine with the smallest median measured."""
    return min(
        (of_engines or {"": []}).values(), key=lambda some: statistics.median([m["seconds"] for m in some] or [0])
    )


def _medians(some):
    return {name: statistics.median(m["traffic"][name] for m in some) for name in some[0]["traffic"]}


def line(row):
    """A row of the table under HEAD."""
    speed = {key: f"{number:.0f}" for key, number in row["pictures_per_second"].items()}
    sent, apart = row["traffic"].get("ranks"), row["traffic"].get("apart")
    step = statistics.median(row["seconds"]["ranks"]) if "ranks" in row["seconds"] else 0
    exchange = (
        f"{sent['messages']:>12.0f} {sent['bytes'] / 1e3:>8.0f} {sent['seconds'] * 1e3:>10.2f} "
        f"{sent['seconds'] / step:>6.1%}"
        if sent
        else f"{'–':>12} {'–':>8} {'–':>10} {'–':>6}"
    )
    waits = f"{apart['waiting'] * 1e3:>13.2f} {apart['seconds'] * 1e3:>7.2f}" if apart else f"{'–':>13} {'–':>7}"
    efficiency = f"{row['efficiency']:.2f}" if "efficiency" in row else "–"
    ratio = f"{row['ratio_ddp']:.2f}×" if "ratio_ddp" in row else "–"
    return (
        f"{row['case']:<12} {row['kernels']:<9} {row['ranks']:>4} × {row['threads']:<1} {speed.get('ranks', 'failed'):>11} "
        f"{speed.get('alone', '–'):>7} {efficiency:>6} {exchange} {waits}   "
        f"{speed.get('torch', '–'):>10} {speed.get('ddp', '–'):>9} {ratio:>6}"
    )


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=["cifar-0.5", "cifar-1.0"])
    parser.add_argument("--split", nargs="+", metavar="RANKSxTHREADS", help="those that fill the cores")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS[:1]))
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    chosen = [tuple(map(int, split.split("x"))) for split in args.split or ()] or splits()
    print(head(args.kernels))
    print(f"batch of the case, shared by the ranks; {args.rounds} round{'s' * (args.rounds != 1)}")
    print(HEAD, flush=True)
    compile_once(args.kernels)
    rows = []
    for name in args.case:
        for which in args.kernels:
            for row in case(name, which, chosen, args.rounds):
                rows.append(row)
                print(line(row), flush=True)
                for engine, why in row["failed"].items() if row["ranks"] == chosen[-1][0] else ():
                    print(f"  failed: {engine}: {why}", flush=True)
    save(args.json, rows, args.kernels)


if __name__ == "__main__":
    main()
