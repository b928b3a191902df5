"""A bottleneck of a ResNet and an inverted residual of MobileNetV2, side by side: chapter 10."""

from _drawing import BACKWARD, FORWARD, WEIGHT, arrow, box, label, save, sheet

CLASSIC = (("256", FORWARD), ("64", WEIGHT), ("64", WEIGHT), ("256", FORWARD))
INVERTED = (("24", FORWARD), ("144", WEIGHT), ("144", WEIGHT), ("24", FORWARD))
STEP, WIDTH = 150, 30


def block(axes, left, middle, channels, layers, scale, title):
    """Boxes as tall as they have channels, the layers between them, and the shortcut above."""
    places = [left + k * STEP for k in range(len(channels))]
    for x, (count, colour) in zip(places, channels, strict=True):
        height = int(count) * scale
        box(axes, x, middle, WIDTH, height, color=colour, round_by=3)
        label(axes, x, middle + height / 2 + 14, count)
    for start, end, (name, after) in zip(places, places[1:], layers, strict=False):
        arrow(axes, (start + WIDTH / 2 + 4, middle), (end - WIDTH / 2 - 4, middle))
        label(axes, (start + end) / 2, middle - 14, name, size=10)
        label(axes, (start + end) / 2, middle + 15, after, size=10, color=WEIGHT)
    top = middle - max(int(count) for count, _ in channels) * scale / 2 - 22
    first, last = (middle - int(channels[k][0]) * scale / 2 - 5 for k in (0, -1))
    axes.plot([places[0], places[0], places[-1]], [first, top, top], color=BACKWARD, linewidth=1.6)
    arrow(axes, (places[-1], top), (places[-1], last), color=BACKWARD)
    label(axes, (places[0] + places[-1]) / 2, top - 13, "x, added at the end", color=BACKWARD, size=10)
    label(axes, left - WIDTH / 2, top - 38, title, size=12, ha="left")


def main():
    """Draw it."""
    figure, axes = sheet(560, 555)
    layers = ("1×1", "norm, ReLU"), ("dense 3×3", "norm, ReLU"), ("1×1", "norm")
    block(axes, 60, 180, CLASSIC, layers, 0.62, "ResNet: wide, narrow, wide")
    layers = ("1×1", "norm, ReLU6"), ("depthwise 3×3", "norm, ReLU6"), ("1×1", "norm")
    block(axes, 60, 450, INVERTED, layers, 0.9, "MobileNetV2: narrow, wide, narrow")
    save(figure, __file__)


if __name__ == "__main__":
    main()
