"""How fast each step of MobileNetV2 computes, over how much it computes for a number that it moves: chapter 7.

The times are those of docs/results/speed.md, "Step by step of the network".
"""

import re
from math import prod
from pathlib import Path

from _drawing import BACKWARD, FORWARD, WEIGHT, plt, save

PICTURES = 64
LOOKS = {
    "depthwise + BN + ReLU6": (BACKWARD, "s", "depthwise 3×3, its batch norm and ReLU6"),
    "1×1": (FORWARD, "o", "1×1"),
    "1×1 + BN + ReLU6": ("#2b7a45", "^", "1×1, its batch norm and ReLU6"),
    "Conv2d": (WEIGHT, "D", "dense 3×3, on 3 channels"),
}


def rows(text):
    """(step, shape of x, shape of y, GFLOP/s) for each line of the table."""
    table = text.split("## Step by step of the network")[1].split("\n## ")[0]
    for line in table.splitlines():
        step, *rest = re.split(r"\s{2,}", line.strip())
        if step in LOOKS and len(rest) >= 6:
            yield step, *([int(n) for n in shape.split("×")] for shape in rest[:2]), float(rest[5])


def intensity(step, x, y):
    """Multiply-adds of the forward for every number of x, y and the weights."""
    if step.startswith("depthwise"):
        weights, terms = 9 * y[0], 9
    else:
        terms = x[0] * (9 if step == "Conv2d" else 1)
        weights = terms * y[0]
    return terms * prod(y) / (prod(x) + prod(y) + weights / PICTURES)


def main():
    """Draw it."""
    found = list(rows((Path(__file__).parents[1] / "results" / "speed.md").read_text(encoding="utf-8")))
    figure, axes = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    for step, (colour, marker, label) in LOOKS.items():
        points = [(intensity(step, x, y), speed) for name, x, y, speed in found if name == step]
        axes.plot(*zip(*points, strict=True), marker, color=colour, label=label, markersize=7, alpha=0.85)
    axes.set(xscale="log", yscale="log", xlim=(2.5, 400), ylim=(3, 250))
    ticks = [3, 10, 30, 100, 300]
    axes.set_xticks(ticks, ticks)
    axes.set_yticks([3, 10, 30, 100], [3, 10, 30, 100])
    axes.minorticks_off()
    axes.grid(color="#e3e5e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("multiply-adds for every number that is read or written")
    axes.set_ylabel("billion operations a second")
    axes.legend(loc="lower right", frameon=False)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    save(figure, __file__)


if __name__ == "__main__":
    main()
