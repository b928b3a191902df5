"""A chain of layers: forward fills a cache in each, backward takes it."""

from _drawing import BACKWARD, FORWARD, INK, WEIGHT, arrow, box, label, save, sheet


def draw():
    """Layers in the middle line, their caches below them, gradients of parameters at the bottom."""
    figure, axes = sheet(800, 360)
    layers = ((190, "Linear", "X", "W, b"), (400, "ReLU", "y", ""), (610, "Linear", "X", "W, b"))
    forward, backward = 82, 242
    for x, name, kept, parameters in layers:
        box(axes, x, forward, 110, 46, name, FORWARD, 12)
        box(axes, x, 162, 84, 36, f"cache: {kept}", WEIGHT, 10, 16)
        box(axes, x, backward, 110, 46, f"{name} back", BACKWARD, 11)
        arrow(axes, (x, forward + 26), (x, 142), WEIGHT)
        arrow(axes, (x, 182), (x, backward - 26), WEIGHT)
        if parameters:
            arrow(axes, (x, backward + 26), (x, 306), BACKWARD)
            label(axes, x, 320, "dW, db: added", BACKWARD, 10.5)
    ends = [62, *(x for x, *_ in layers), 738]
    for k, name in enumerate("xhaz"):
        one, other = ends[k : k + 2]
        start, end = one + (58 if k else 0), other - (58 if k < 3 else 0)
        arrow(axes, (start, forward), (end, forward), FORWARD)
        arrow(axes, (end, backward), (start, backward), BACKWARD)
        label(axes, (start + end) / 2, forward - 14, name, FORWARD, 12)
        label(axes, (start + end) / 2, backward - 14, f"d{name}", BACKWARD, 12)
    label(axes, 744, forward, "loss", INK, 12, ha="left")
    label(axes, 744, backward, "loss", INK, 12, ha="left")
    label(axes, 400, 24, "forward: in this order, each keeps what it will need", FORWARD, 12, weight="bold")
    label(axes, 400, 346, "backward: in the reverse order, each takes what it kept", BACKWARD, 12, weight="bold")
    save(figure, __file__)


if __name__ == "__main__":
    draw()
