"""The gradient of the cross entropy as the way from the target to the probability, class by class."""

import numpy as np
from _drawing import BACKWARD, FAINT, FORWARD, INK, Rectangle, arrow, label, save, sheet, short

import scratchnet as sn

LOGITS, LABEL = np.array([[2.0, 1.0, 0.5, -1.0]]), 1
NAMES = "frog", "ship", "dog", "truck"


def draw():
    """A column a class: a bar for p, a line at t, an arrow from t to p."""
    criterion = sn.CrossEntropyLoss()
    criterion(LOGITS, np.array([LABEL]))
    dz = criterion.backward()[0]
    p = np.exp(LOGITS[0]) / np.exp(LOGITS[0]).sum()
    figure, axes = sheet(800, 470)
    floor, height = 300, 240
    axes.plot([150, 760], [floor, floor], color=INK, lw=1)
    for share in (0, 0.5, 1):
        y = floor - share * height
        axes.plot([150, 760], [y, y], color=FAINT, lw=0.6, zorder=0)
        label(axes, 140, y, short(share), INK, 10, ha="right")
    for k, name in enumerate(NAMES):
        left, target = 175 + 150 * k, float(k == LABEL)
        axes.add_patch(Rectangle((left, floor - p[k] * height), 62, p[k] * height, fc="#9dc0e6", ec=FORWARD))
        level = floor - target * height
        axes.plot([left - 8, left + 112], [level, level], color=INK, lw=3)
        ends = (left + 90, level), (left + 90, floor - p[k] * height)
        arrow(axes, *ends, BACKWARD, width=2.4, head=min(14, 200 * abs(dz[k])))
        for y, text, color in ((335, short(LOGITS[0, k]), INK), (365, short(p[k]), FORWARD), (395, short(target), INK)):
            label(axes, left + 52, y, text, color, 11)
        label(axes, left + 52, 428, short(dz[k]), BACKWARD, 12, weight="bold")
        title, weight = (f"{name}, the right one", "bold") if target else (name, None)
        label(axes, left + 52, 24, title, INK, 11, weight=weight)
    for y, text, color in ((335, "logit z", INK), (365, "p (bars)", FORWARD), (395, "t (lines)", INK)):
        label(axes, 20, y, text, color, 11, ha="left")
    label(axes, 20, 428, "dz = p − t", BACKWARD, 12, ha="left", weight="bold")
    axes.plot([20, 760], [412, 412], color=FAINT, lw=0.8)
    label(axes, 20, 455, "arrows: from t to p; together they go as far up as down", BACKWARD, 10, ha="left")
    save(figure, __file__)


if __name__ == "__main__":
    draw()
