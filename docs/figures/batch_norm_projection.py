"""What batch norm's backward takes out of a gradient, for a row of three numbers: chapter 8."""

import numpy as np
from _drawing import BACKWARD, FORWARD, INK, WEIGHT, arrow, plt, save

from scratchnet.layers.norm import batch_norm_backward, batch_norm_forward

X = np.array([0.3, 1.1, 2.2])  # three numbers of one channel
LEFT = "#2b7a45"  # the colour of what is left
DY = np.array([1.15, 0.35, 2.4])


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
    left.axhline(0, color=WEIGHT, linewidth=1)
    left.text(2.55, -0.22, "rows of mean 0", color=WEIGHT, ha="right")
    arrow(left, (0, 0), (0, 2.75), WEIGHT, width=1)
    left.text(0.08, 2.62, "1 = (1, 1, 1)", color=WEIGHT)
    arrow(left, (0, 0), (length, height), INK)
    left.text(length + 0.06, height, "dy", color=INK)
    arrow(left, (0, 0), (length, 0), FORWARD)
    left.text(length / 2 - 0.1, 0.1, "dy - mean(dy)", color=FORWARD, ha="center")
    arrow(left, (length, height), (length, 0), BACKWARD, width=1.2)
    left.text(length + 0.06, height / 2, "mean(dy)", color=BACKWARD)
    left.set(xlim=(-0.35, 2.6), ylim=(-0.6, 2.9), aspect="equal", title="seen from the side: the mean goes")

    def seen(row):
        return row @ along, row @ across

    right.add_patch(plt.Circle((0, 0), radius, fill=False, edgecolor=WEIGHT, linewidth=1))
    right.text(-1.45, -1.75, "all normalised rows", color=WEIGHT, ha="center")
    arrow(right, (0, 0), seen(xhat), WEIGHT, width=1.4)
    right.text(*(1.08 * np.array(seen(xhat))), "x̂", color=WEIGHT, ha="left", va="top")
    arrow(right, (0, 0), seen(flat), FORWARD)
    right.text(seen(flat)[0] + 0.05, seen(flat)[1] - 0.16, "dy - mean(dy)", color=FORWARD)
    arrow(right, seen(flat), seen(dx), BACKWARD, width=1.2)
    middle = (np.array(seen(flat)) + seen(dx)) / 2
    right.text(middle[0] + 0.1, middle[1] + 0.05, "x̂ mean(dy x̂)", color=BACKWARD)
    arrow(right, (0, 0), seen(dx), LEFT, width=2.6)
    right.text(*(1.1 * np.array(seen(dx))), "what is left", color=LEFT, ha="center", va="bottom")
    arrow(right, seen(xhat), np.array(seen(xhat)) + seen(dx), LEFT, width=1.4)
    right.set(xlim=(-2.3, 2.9), ylim=(-2.1, 2.3), aspect="equal", title="the plane from above: the part along x̂ goes")
    for axes in (left, right):
        axes.set_axis_off()
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    save(figure, __file__)


if __name__ == "__main__":
    main()
