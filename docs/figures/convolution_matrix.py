"""A convolution along one axis as a matrix, in four geometries: chapter 7."""

import numpy as np
from _drawing import FORWARD, plt, save

from scratchnet.windows import output_size, tap_slices

COLOURS = FORWARD, "#c2620a", "#2b7a45"


def taps_of(size, kernel, stride, padding):
    """Which tap reads which input for which output: (outputs, size), -1 where none does."""
    count = output_size(size, kernel, stride, padding)
    matrix = np.full((count, size), -1)
    for tap in range(kernel):
        outside, inside = tap_slices(tap, size, count, stride, padding, 1)
        matrix[np.r_[outside], np.r_[inside]] = tap
    return matrix


def draw(axes, matrix, title, below, beside):
    """The matrix as a grid of coloured cells."""
    rows, columns = matrix.shape
    for (row, column), tap in np.ndenumerate(matrix):
        colour = "white" if tap < 0 else COLOURS[tap]
        axes.add_patch(plt.Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="#b8bcc2", linewidth=0.8))
        if tap >= 0:
            axes.text(column + 0.5, row + 0.52, f"w{'₀₁₂'[tap]}", ha="center", va="center", color="white")
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal", title=title)
    axes.set_xticks(np.arange(columns) + 0.5, range(columns))
    axes.set_yticks(np.arange(rows) + 0.5, range(rows))
    axes.set_xlabel(below)
    axes.set_ylabel(beside)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def main():
    """Draw it."""
    figure, axes = plt.subplots(2, 2, figsize=(7.6, 6.4), height_ratios=[6, 5.5], layout="constrained")
    draw(axes[0, 0], taps_of(6, 3, 1, 1), "y = A x: stride 1, padding 1", "x", "y")
    draw(axes[0, 1], taps_of(6, 3, 2, 1), "y = A x: stride 2, padding 1", "x", "y")
    draw(axes[1, 0], taps_of(6, 3, 2, 1).T, "dx = Aᵀ dy of stride 2, padding 1", "dy", "dx")
    draw(axes[1, 1], taps_of(6, 3, 2, 0), "stride 2, no padding: pixel 5 is not read", "x", "y")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    save(figure, __file__)


if __name__ == "__main__":
    main()
