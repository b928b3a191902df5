"""The numbers of docs/course/worked-example.md, drawn: the page's own code computes them."""

import contextlib
import doctest
import io
from pathlib import Path

from _drawing import BACKWARD, FAINT, FORWARD, INK, WEIGHT, Rectangle, arrow, label, save, sheet, short, table

PAGE = Path(__file__).parent.parent / "course" / "worked-example.md"
CELL = 60, 26
LEFT, MIDDLE, RIGHT = 18, 300, 654  # where the columns begin


def numbers():
    """Name -> array, forward and backward, as the page has them before its update."""
    names: dict = {"__name__": "page"}
    for example in doctest.DocTestParser().get_examples(PAGE.read_text(encoding="utf-8")):
        if "loss_with" in example.source:
            break
        with contextlib.redirect_stdout(io.StringIO()):
            exec(example.source, names)
    found = {name: names[name] for name in ("x", "h", "a", "z", "p", "dz", "da", "dh", "dx")}
    for number, layer in enumerate((names["first"], names["second"]), 1):
        found |= {f"W{number}": layer.weight.data, f"b{number}": layer.bias.data[:, None]}
        found |= {f"dW{number}": layer.weight.grad, f"db{number}": layer.bias.grad[:, None]}
    return found | {"loss": names["loss"].reshape(1, 1)}


def picture(axes, left, top, pixels, title):
    """2×2 pixels, the brighter the larger."""
    for k, value in enumerate(pixels):
        corner = left + k % 2 * 24, top + k // 2 * 24
        axes.add_patch(Rectangle(corner, 24, 24, fc=str(0.15 + 0.4 * value), ec=FAINT, lw=0.8))
    label(axes, left + 56, top + 24, title, size=9.5, ha="left")


def draw():
    """The whole step on one sheet: forward down the left, backward up the right, the weights between them."""
    found = numbers()
    figure, axes = sheet(912, 940)

    def put(name, left, top, color, title):
        width, height = table(axes, left, top, found[name], color, CELL, name, 9.3)
        label(axes, left + width / 2, top - 14, title, color, 11, weight="bold")
        return top + height

    heads = ((LEFT, FORWARD, "forward ↓"), (MIDDLE, WEIGHT, "weights and biases"), (RIGHT, BACKWARD, "backward ↑"))
    for left, color, title in heads:
        label(axes, left + (116 if left != MIDDLE else 152), 22, title, color, 13, weight="bold")
    for row, title in enumerate(("stands: 0", "lies: 1")):
        picture(axes, LEFT + row * 136, 50, found["x"][row], title)

    tops = {"x": 140, "h": 400, "a": 510, "z": 728, "p": 840}
    steps = (
        ("x", "h", "Linear", "dx = dh W1"),
        ("h", "a", "ReLU", "dh = da · (h > 0)"),
        ("a", "z", "Linear", "da = dz W2"),
    )
    for name, top in tops.items():
        put(name, LEFT, top, FORWARD, {"p": "p = softmax(z)"}.get(name, name))
        if name != "p":
            put(f"d{name}", RIGHT, top, BACKWARD, f"d{name}")
    for one, other, said, back in (*steps, ("z", "p", "softmax", "")):
        above, below = tops[one] + 2 * CELL[1] + 5, tops[other] - 26
        width = CELL[0] * min(len(found[one][0]), len(found[other][0]))
        arrow(axes, (LEFT + width / 2, above), (LEFT + width / 2, below), FORWARD)
        label(axes, LEFT + width / 2 + 10, (above + below) / 2, said, FORWARD, 10, ha="left")
        if back:
            arrow(axes, (RIGHT + width / 2, below), (RIGHT + width / 2, above), BACKWARD)
            label(axes, RIGHT + width / 2 + 10, (above + below) / 2, back, BACKWARD, 10, ha="left")

    for number, top, given, taken in ((1, 160, "dh", "x"), (2, 565, "dz", "a")):
        bias = MIDDLE + len(found[f"W{number}"][0]) * CELL[0] + 14
        put(f"b{number}", bias, top, WEIGHT, f"b{number}")
        below = put(f"W{number}", MIDDLE, top, WEIGHT, f"W{number}") + 36
        put(f"dW{number}", MIDDLE, below, BACKWARD, f"dW{number} = {given}ᵀ {taken}")
        put(f"db{number}", bias, below, BACKWARD, f"db{number}")

    # the loss, where forward ends and backward begins
    level = tops["p"] + CELL[1]
    arrow(axes, (LEFT + 2 * CELL[0] + 6, level), (390, level), FORWARD)
    label(axes, 262, level - 14, "labels 0, 1", FORWARD, 10)
    axes.add_patch(Rectangle((396, level - 19), 96, 38, fc="white", ec=INK, lw=1.6))
    label(axes, 444, level, short(found["loss"].item()), INK, 12, "loss.0.0", weight="bold")
    label(axes, 444, level + 34, "loss: the mean of −log p[label]", INK, 10)
    axes.plot([498, RIGHT + CELL[0]], [level, level], color=BACKWARD, lw=1.6)
    arrow(axes, (RIGHT + CELL[0], level), (RIGHT + CELL[0], tops["z"] + 2 * CELL[1] + 5), BACKWARD)
    label(axes, RIGHT + CELL[0] + 10, level - 30, "dz = (p − t) / 2", BACKWARD, 10, ha="left")
    save(figure, __file__)


if __name__ == "__main__":
    draw()
