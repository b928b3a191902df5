"""Activations and their slopes, as the library's layers compute them."""

import numpy as np
from _drawing import BACKWARD, FAINT, FORWARD, INK, plt, save

import scratchnet as sn

LAYERS = sn.ReLU, sn.ReLU6, sn.Sigmoid, sn.Tanh, sn.SiLU, sn.GELU


def draw():
    """A panel for each: y in blue, dy/dx dashed and red; a slope that jumps is broken there."""
    figure, panels = plt.subplots(2, 3, figsize=(8, 5), sharex=True, layout="constrained")
    x = np.linspace(-4, 8, 601)
    for kind, axes in zip(LAYERS, panels.flat, strict=True):
        layer = kind()
        y = layer(x[None])[0]
        slope = layer.backward(np.ones((1, x.size)))[0]
        slope[np.r_[False, np.abs(np.diff(slope)) > 0.5]] = np.nan
        axes.axhline(0, color=FAINT, lw=0.6)
        axes.plot(x, y, color=FORWARD, lw=2.2)
        axes.plot(x, slope, "--", color=BACKWARD, lw=2)
        high = y.max() > 2
        axes.set(ylim=(-1, 8.5) if high else (-1.25, 1.25), xticks=(-4, -2, 0, 2, 4, 6, 8))
        axes.set_title(kind.__name__, color=INK, fontsize=11, fontweight="bold")
    panels[0, 0].text(4.4, 6.4, "y", color=FORWARD, ha="right")
    panels[0, 0].text(7.8, 1.5, "slope dy/dx", color=BACKWARD, ha="right")
    save(figure, __file__)


if __name__ == "__main__":
    draw()
