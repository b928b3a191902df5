"""Max pooling with ties: who wins each window, and what comes back."""

import numpy as np
from _drawing import BACKWARD, FORWARD, INK, Rectangle, arrow, label, save, sheet, short, table

import scratchnet as sn

X = np.array([[1.0, 3, 5, 2], [4, 2, 5, 1], [0, 0, 7, 6], [0, 0, 8, 9]])
DY = np.array([[1.0, 2], [3, 4]])
CELL = 50, 50


def draw():
    """x and y above, dx and dy below; winners are framed, windows have a thick border."""
    pool = sn.MaxPool2d(2)
    y = pool(X[None, None])[0, 0]
    dx = pool.backward(DY[None, None])[0, 0]
    winners = dx != 0
    figure, axes = sheet(720, 560)

    def picture(left, top, values, color, title):
        table(axes, left, top, values, color, CELL, size=13, fill=lambda i, j: "#f6c9bd" if winners[i, j] else "white")
        for k in range(4):
            corner = left + k % 2 * 100, top + k // 2 * 100
            axes.add_patch(Rectangle(corner, 100, 100, fc="none", ec=INK, lw=2.4))
        label(axes, left + 100, top - 16, title, color, 13, weight="bold")

    def small(left, top, values, color, title):
        table(axes, left, top, values, color, CELL, size=13)
        label(axes, left + 50, top - 16, title, color, 13, weight="bold")

    picture(60, 50, X, FORWARD, "x")
    small(500, 100, y, FORWARD, "y")
    picture(60, 320, dx, BACKWARD, "dx")
    small(500, 370, DY, BACKWARD, "dy")
    arrow(axes, (280, 150), (480, 150), FORWARD)
    arrow(axes, (480, 420), (280, 420), BACKWARD)
    label(axes, 380, 134, "the largest", FORWARD, 11)
    label(axes, 380, 404, "all to the winner", BACKWARD, 11)
    axes.add_patch(Rectangle((300, 186), 18, 18, fc="#f6c9bd", ec=FORWARD))
    label(axes, 326, 195, "the winner; of equals", INK, 10, ha="left")
    label(axes, 326, 213, "the first in reading order", INK, 10, ha="left")
    label(axes, 160, 542, f"Σ dx = {short(dx.sum())} = Σ dy", INK, 11)
    save(figure, __file__)


if __name__ == "__main__":
    draw()
