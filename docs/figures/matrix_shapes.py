"""The three products of a linear layer, as rectangles: which side goes into the sum."""

from _drawing import BACKWARD, FORWARD, INK, PALE, WEIGHT, Rectangle, label, save, sheet

SIDES = {"O": 66, "F": 104, "N": 40}


def matrix(axes, left, middle, name, rows, columns, color, sum_over):
    """A rectangle with a name and the sizes of its sides; the side that is summed over is thick. Returns its width."""
    width, height = SIDES[columns], SIDES[rows]
    top = middle - height / 2
    axes.add_patch(Rectangle((left, top), width, height, fc=PALE[color], ec=color, lw=1.4))
    label(axes, left + width / 2, middle, name, color, 13, weight="bold")
    label(axes, left + width / 2, top - 11, columns, INK, 10.5)
    label(axes, left - 10, middle, rows, INK, 10.5)
    if columns == sum_over:
        axes.plot([left, left + width], [top, top], color=INK, lw=4, solid_capstyle="butt")
    if rows == sum_over:
        axes.plot([left, left], [top, top + height], color=INK, lw=4, solid_capstyle="butt")
    return width


def draw():
    """A row for each product."""
    figure, axes = sheet(800, 430)
    colors = {"Y": FORWARD, "X": FORWARD, "Xᵀ": FORWARD, "W": WEIGHT, "Wᵀ": WEIGHT}
    rows = (
        (75, ("Y", "O", "N"), ("W", "O", "F"), ("X", "F", "N"), "forward: sums over features"),
        (205, ("dW", "O", "F"), ("dY", "O", "N"), ("Xᵀ", "N", "F"), "dW: sums over pictures"),
        (340, ("dX", "F", "N"), ("Wᵀ", "F", "O"), ("dY", "O", "N"), "dX: sums over outputs"),
    )
    for middle, *names, said in rows:
        result, first, second = ((*name, colors.get(name[0], BACKWARD)) for name in names)
        matrix(axes, 40, middle, *result, None)
        label(axes, 180, middle, "=", INK, 16)
        width = matrix(axes, 230, middle, *first, first[2])
        label(axes, 230 + width + 26, middle, "·", INK, 18)
        matrix(axes, 230 + width + 62, middle, *second, first[2])
        label(axes, 540, middle, said, INK, 12, ha="left")
    said = "thick: the side that a product sums over, and that its result does not have"
    label(axes, 40, 418, said, INK, 10, ha="left")
    save(figure, __file__)


if __name__ == "__main__":
    draw()
