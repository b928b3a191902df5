"""A paper model of training on up to 1,024 ranks: where it stops to scale, and what then.

    python benchmarks/ranks_model.py [--width 1.0] [--json FILE]                                       (extra `fast`)

Measured, here: a step on one thread at several batches (what one rank computes); the messages of a step, by letting the
network believe that it is one of two; what an exchange takes between two ranks in shared memory; what adding up costs.
Stated, not measured: a machine has PER_MACHINE ranks, and machines talk by 100 Gbit/s with 2 µs of latency.

What MPICH does with the messages, as the model has it: to gather n bytes from each of R ranks takes ⌈log₂ R⌉ rounds and
(R − 1) n bytes for each rank, which then adds up all R: that is what batch norm, the loss and the counts do. The n bytes of
the gradients are summed in shares, by an exchange of each with each and a gathering in a ring: R − 1 rounds and
n (R − 1) / R bytes, twice. Nobody waits for a slower one, ranks of a machine do not share its memory's bandwidth, and
nothing overlaps. So the speed that it gives is an upper bound; it says where the exchange alone ends the scaling.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from engines import Engine, measure, mpiexec, spec
from machine import KERNELS, head, save

import scratchnet as sn
from models import MobileNetV2
from scratchnet import ranks

RANKS = [1 << k for k in range(11)]
PER_MACHINE = 16
LATENCY, BANDWIDTH = 2e-6, 100e9 / 8  # of the network: seconds; bytes a second, which a machine's ranks share
WEAK, STRONG = 32, 4096  # pictures a rank; pictures in all
BATCHES = (4, 8, 16, 32, 64)
OVERLAP = 0.6  # of a step's computing is backward, under which gradients could be sent


# Measured -------------------------------------------------------------------------------------------------------------


def messages(width, local):
    """(whether it is summed in shares, bytes) of each message of a rank's step."""
    found = []

    def gather(array):
        found.append((False, array.nbytes))
        return np.stack([array, array])

    def add(array):
        found.append((True, array.nbytes))

    names = ("size", "_gather", "_sum_in_place", "_world", "local_batch_norm")
    before = {name: getattr(ranks, name) for name in names}
    believed = (2, gather, add, SimpleNamespace(cards_for=lambda array: None), local)
    vars(ranks).update(zip(names, believed, strict=True))
    try:
        rng = np.random.default_rng(0)
        model, criterion = MobileNetV2(10, width, "cifar", rng=rng), sn.CrossEntropyLoss()
        criterion(model(sn.as_images(rng.standard_normal((3, 32, 32, 4), dtype=np.float32))), rng.integers(0, 10, 4))
        model.backward(criterion.backward())
        ranks.sum_gradients(model.parameters())
    finally:
        vars(ranks).update(before)
    return found


def computing(width, rounds):
    """Seconds of a rank's step on one thread, by pictures; in between a straight line."""
    engine = Engine("scratchnet", KERNELS[0])
    taken: dict = {batch: [] for batch in BATCHES}
    for _ in range(rounds):
        for batch, some in taken.items():
            some.append(measure(engine, spec("cifar", width, 32, batch, 1), seconds=2)["seconds"])
    seconds = [statistics.median(some) for some in taken.values()]
    return lambda batch: float(np.interp(batch, BATCHES, seconds)) * max(1.0, batch / BATCHES[-1])


def exchange():
    """Run under mpiexec: seconds of a small gather, and bytes a second of a large sum, between two ranks."""
    ranks.start()
    small, large = np.zeros(64), np.zeros(1 << 21, np.float32)

    def of(do, times):
        do()
        start = time.perf_counter()
        for _ in range(times):
            do()
        return (time.perf_counter() - start) / times

    latency, long = of(lambda: ranks._gather(small), 1000), of(lambda: ranks._sum_in_place(large), 30)
    if ranks.rank == 0:  # of n bytes half is sent, twice
        print(json.dumps({"latency": latency, "bandwidth": large.nbytes / long}))


def adding(count, of):
    """Seconds to add up so many ranks' arrays of so many bytes, in order."""
    arrays = np.zeros((count, max(1, of // 4)), np.float32)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        total, *others = arrays
        for other in others:
            total += other
        taken.append(time.perf_counter() - start)
    return min(taken)


# The model ------------------------------------------------------------------------------------------------------------


class Costs:
    """What a message takes on so many ranks.

    Args:
        shared: what `exchange` measured. Its latency is also what Python and MPI take for a message wherever it goes.
    """

    def __init__(self, count, shared):
        self.count, self.software = count, shared["latency"]
        near = count <= PER_MACHINE
        self.latency = shared["latency"] if near else LATENCY
        self.bandwidth = shared["bandwidth"] if near else min(shared["bandwidth"], BANDWIDTH / PER_MACHINE)

    def gather(self, size):
        """Seconds to bring so many bytes of each rank to all."""
        rounds = math.ceil(math.log2(self.count))
        return self.software + (rounds - 1) * self.latency + (self.count - 1) * size / self.bandwidth

    def message(self, in_shares, size):
        """Seconds of one of `messages`."""
        if self.count == 1:
            return 0.0
        if in_shares:
            share = size / self.count
            sent = (self.count - 1) * (self.latency + share / self.bandwidth)
            return 2 * (self.software + sent) + adding(self.count, int(share))
        return self.gather(size) + adding(self.count, size)


def predict(count, batch, compute, sent, shared):
    """Seconds of a step, by what they are for."""
    costs, taken = Costs(count, shared), {"compute": compute(batch), "gradients": 0.0, "others": 0.0}
    known: dict = {}
    for message in sent:
        if message not in known:
            known[message] = costs.message(*message)
        taken["gradients" if message[0] else "others"] += known[message]
    return taken


def table(name, batches, compute, everything, local, shared):
    """Rows of one kind of scaling."""
    rows = []
    for count in RANKS:
        batch = batches(count)
        if batch < BATCHES[0]:
            continue
        taken = predict(count, batch, compute, everything, shared)
        alone = predict(count, batch, compute, local, shared)
        hidden = max(0.0, alone["gradients"] - OVERLAP * alone["compute"])
        seconds = {
            "step": sum(taken.values()), "local": sum(alone.values()),
            "overlapped": alone["compute"] + alone["others"] + hidden,
        }  # fmt: skip
        row = {"scaling": name, "ranks": count, "batch": batch, **{f"{key}_seconds": s for key, s in taken.items()}}
        row["pictures_per_second"] = {key: count * batch / s for key, s in seconds.items()}
        one = rows[0]["pictures_per_second"]["step"] if rows else row["pictures_per_second"]["step"]
        row["efficiency"] = {key: speed / count / one for key, speed in row["pictures_per_second"].items()}
        rows.append(row)
    return rows


def main():
    """Print what was measured, and the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--exchange", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.exchange:
        return exchange()
    everything, local = messages(args.width, False), messages(args.width, True)
    said = subprocess.run([*mpiexec(2), sys.executable, __file__, "--exchange"], capture_output=True, check=True)
    shared, compute = json.loads(said.stdout), computing(args.width, args.rounds)
    print(head(KERNELS[:1]))
    print(
        f"width {args.width:g}; a rank is one thread: " + ", ".join(f"{b}: {compute(b) * 1e3:.1f} ms" for b in BATCHES)
    )
    for title, some in (("messages of a step", everything), ("with local batch norm", local)):
        sizes = sorted((size for _, size in some), reverse=True)
        print(f"{title}: {len(some)}, of {sizes[0] / 1e6:.2f} MB and {sum(sizes[1:]) / 1e3:.1f} KB in all others")
    print(f"shared memory, 2 ranks: {shared['latency'] * 1e6:.0f} µs a message, {shared['bandwidth'] / 1e9:.2f} GB/s")
    print(f"stated: {LATENCY * 1e6:.0f} µs, {BANDWIDTH / 1e9:.1f} GB/s between machines of {PER_MACHINE} ranks")
    rows = []
    for name, batches in (("weak", lambda _: WEAK), ("strong", lambda count: STRONG // count)):
        print(f"\n{name}: {f'{WEAK} pictures a rank' if name == 'weak' else f'{STRONG:,} pictures in all'}")
        print(
            f"{'':>6} {'pictures':>9} {'compute,':>9} {'gradients,':>11} {'others,':>9} {'pictures':>9} {'efficiency':>11} "
            f"{'local':>11} {'and gradients':>14}\n"
            f"{'ranks':>6} {'a rank':>9} {'ms':>9} {'ms':>11} {'ms':>9} {'a second':>9} {'':>11} {'batch norm':>11} "
            f"{'under backward':>14}"
        )
        for row in table(name, batches, compute, everything, local, shared):
            rows.append(row)
            fast = row["efficiency"]
            print(
                f"{row['ranks']:>6} {row['batch']:>9} {row['compute_seconds'] * 1e3:>9.1f} "
                f"{row['gradients_seconds'] * 1e3:>11.2f} {row['others_seconds'] * 1e3:>9.2f} "
                f"{row['pictures_per_second']['step']:>9.0f} {fast['step']:>11.0%} {fast['local']:>11.0%} "
                f"{fast['overlapped']:>14.0%}"
            )
    save(args.json, [{"width": args.width, "shared": shared, "messages": len(everything)}, *rows], KERNELS[:1])
    return None


if __name__ == "__main__":
    main()
