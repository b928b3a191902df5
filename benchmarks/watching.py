"""What --watch costs a training step, as a ratio: without it, with nobody looking, and with a page open.

The same network takes the same step again and again, in blocks of about two seconds that take turns, so that what else the
machine does meets all three alike. A page is a process of its own that asks as the page in a browser does, once a second.
Beside the ratio of the blocks' medians stands what can be said more exactly than any such ratio: the time that the trainer
itself spends in `Watch.step`, and the processor time of the threads that answer, as shares of the time that the steps take.

    python benchmarks/watching.py [--threads 1] [--width 0.5] [--batch 64] [--blocks 12]
"""

import argparse
import signal
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np

import scratchnet as sn
from models import MobileNetV2
from scratchnet.program import private
from scratchnet.program.watch import Watch
from scratchnet.training.metrics import FIELDS

ASKS = """
import sys, time, urllib.request
while True:
    urllib.request.urlopen(sys.argv[1] + "state").read()
    time.sleep(1)
"""
SECONDS = 2.0  # of a block
HOW = ("without", "nobody looks", "a page is open")


class Answering(private._Handler):
    """Counts the processor time of its answers."""

    seconds = 0.0

    def handle(self):
        """Answer one request."""
        start = time.thread_time()
        super().handle()
        Answering.seconds += time.thread_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind, value in (("threads", int, 1), ("width", float, 0.5), ("batch", int, 64), ("blocks", int, 12)):
        parser.add_argument(f"--{name}", type=kind, default=value)
    args = parser.parse_args()
    sn.set_num_threads(args.threads)
    private._Handler = Answering
    rng = np.random.default_rng(0)
    model, criterion = MobileNetV2(10, args.width, rng=rng), sn.CrossEntropyLoss()
    optimizer = sn.SGD(model.parameters(), lr=0.01)
    x = sn.as_images(rng.standard_normal((3, 32, 32, args.batch), dtype=np.float32))
    labels = rng.integers(0, 10, args.batch)
    watch, done, inside = Watch(), 0, 0.0
    watch.open(0)
    batches = SimpleNamespace(batch_size=args.batch, dataset=SimpleNamespace(classes=(), labels=labels))
    epoch = type("Epoch", (), {"batch_size": args.batch, "__len__": lambda self: 700})()
    rows = SimpleNamespace(rows=[dict.fromkeys(FIELDS, 0.123456) for _ in range(20)])
    trainer = SimpleNamespace(train=epoch, validation=batches, epochs=20, steps_done=0, config={}, record=rows)
    watch.begin(trainer, [])
    for step in range(2000):  # as far into a run: the curves are as long as they get
        watch.step(row_of(step + 1))

    page = subprocess.Popen([sys.executable, "-c", ASKS, watch.url])

    def block(how):
        nonlocal done, inside
        page.send_signal(signal.SIGCONT if how == HOW[2] else signal.SIGSTOP)
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            sn.train_step(model, criterion, optimizer, x, labels)
            done, steps = done + 1, steps + 1
            if how != HOW[0]:
                before = time.perf_counter()
                watch.step(row_of(2000 + done))
                inside += time.perf_counter() - before
        seconds = time.perf_counter() - start
        return seconds, steps

    block(HOW[0])  # what is compiled and kept the first time
    inside, Answering.seconds, taken = 0.0, 0.0, {how: [] for how in HOW}
    for k in range(args.blocks):
        for how in HOW[k % 3 :] + HOW[: k % 3]:
            taken[how].append(block(how))
    step = {how: statistics.median(seconds / steps for seconds, steps in blocks) for how, blocks in taken.items()}
    told, open_page = ([b for how in some for b in taken[how]] for some in (HOW[1:], HOW[2:]))
    print(f"width {args.width}, batch {args.batch}, {args.threads} threads: {1000 * step[HOW[0]]:.1f} ms a step")
    for how in HOW[1:]:
        print(f"{how}: {step[how] / step[HOW[0]]:.4f} of a step without, median of {args.blocks} blocks")
    print(f"in Watch.step: {inside / sum(seconds for seconds, _ in told):.4%} of the time")
    print(f"answering the page: {Answering.seconds / sum(seconds for seconds, _ in open_page):.4%} of the time")
    page.kill()
    page.wait()
    watch.stop()


def row_of(step):
    """What the trainer tells in a step."""
    return {
        "step": step, "epoch": step / 700, "loss": 1.23456789, "accuracy": 0.56789, "lr": 0.0123, "images_per_second": 321.0
    }  # fmt: skip


if __name__ == "__main__":
    main()
