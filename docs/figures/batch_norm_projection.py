"""What batch norm's backward takes out of a gradient, for a row of three numbers: chapter 8."""

import numpy as np
from drawing import BLUE, GREEN, GREY, ORANGE, RED, plt, save

from scratchnet.layers.norm import batch_norm_backward, batch_norm_forward

X = np.array([0.3, 1.1, 2.2])  # three numbers of one channel
DY = np.array([1.15, 0.35, 2.4])


def arrow(axes, start, end, colour, **style):
    """An arrow from one point of the plane to another."""
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 2, "shrinkA": 0, "shrinkB": 0} | style
    axes.annotate("", end, start, arrowprops=style)


def main():
    """Draw it, with the numbers that the layer itself finds."""
    y, *_, cache = batch_norm_forward(X.reshape(3, 1, 1, 1), np.ones(1), np.zeros(1), 0.0)
    xhat, dx = y.ravel(), batch_norm_backward(DY.reshape(3, 1, 1, 1), cache)[0].ravel() * X.std()
    ones = np.ones(3) / np.sqrt(3)
    flat = DY - DY.mean()
    along, across = flat / np.linalg.norm(flat), np.cross(ones, flat / np.linalg.norm(flat))
    radius = np.linalg.norm(xhat)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.8), width_ratios=[1, 1.25], layout="constrained")
    height, length = DY @ ones, np.linalg.norm(flat)
    left.axhline(0, color=GREY, linewidth=1)
    left.text(2.55, -0.22, "rows of mean 0", color=GREY, ha="right")
    arrow(left, (0, 0), (0, 2.75), GREY, linewidth=1)
    left.text(0.08, 2.62, "1 = (1, 1, 1)", color=GREY)
    arrow(left, (0, 0), (length, height), ORANGE)
    left.text(length + 0.06, height, "dy", color=ORANGE)
    arrow(left, (0, 0), (length, 0), BLUE)
    left.text(length / 2 - 0.1, 0.1, "dy - mean(dy)", color=BLUE, ha="center")
    arrow(left, (length, height), (length, 0), RED, linestyle="--", linewidth=1.4)
    left.text(length + 0.06, height / 2, "mean(dy)", color=RED)
    left.set(xlim=(-0.35, 2.6), ylim=(-0.6, 2.9), aspect="equal", title="seen from the side: the mean goes")

    def seen(row):
        return row @ along, row @ across

    right.add_patch(plt.Circle((0, 0), radius, fill=False, edgecolor=GREY, linewidth=1))
    right.text(-1.45, -1.75, "all normalised rows", color=GREY, ha="center")
    arrow(right, (0, 0), seen(xhat), GREY, linewidth=1.4)
    right.text(*(1.08 * np.array(seen(xhat))), "x̂", color=GREY, ha="left", va="top")
    arrow(right, (0, 0), seen(flat), BLUE)
    right.text(seen(flat)[0] + 0.05, seen(flat)[1] - 0.16, "dy - mean(dy)", color=BLUE)
    arrow(right, seen(flat), seen(dx), RED, linestyle="--", linewidth=1.4)
    middle = (np.array(seen(flat)) + seen(dx)) / 2
    right.text(middle[0] + 0.1, middle[1] + 0.05, "x̂ mean(dy x̂)", color=RED)
    arrow(right, (0, 0), seen(dx), GREEN, linewidth=2.6)
    right.text(*(1.1 * np.array(seen(dx))), "what is left", color=GREEN, ha="center", va="bottom")
    arrow(right, seen(xhat), np.array(seen(xhat)) + seen(dx), GREEN, linewidth=1.4)
    right.set(xlim=(-2.3, 2.9), ylim=(-2.1, 2.3), aspect="equal", title="the plane from above: the part along x̂ goes")
    for axes in (left, right):
        axes.set_axis_off()
    save(figure, __file__)


if __name__ == "__main__":
    main()
