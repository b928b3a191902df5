"""A fork with numbers: forward x goes two ways, backward two gradients are added."""

from _drawing import BACKWARD, FORWARD, INK, arrow, box, label, save, sheet

X, DY = 2.0, 1.0
A, B = 3 * X, X**2  # the two branches
DA, DB = 3 * DY, 2 * X * DY  # what they hand back


def draw():
    """Forward in the upper half, backward in the lower one, with the same four places."""
    figure, axes = sheet(800, 430)

    def lane(middle, color, names, values, turned):
        fork, join, up, down = (170, middle), (630, middle), (400, middle - 48), (400, middle + 48)
        box(axes, *fork, 96, 44, names[0], color, 11.5)
        box(axes, *join, 96, 44, names[3], color, 11.5)
        box(axes, *up, 120, 40, names[1], color, 11.5)
        box(axes, *down, 120, 40, names[2], color, 11.5)
        ways = [((40, middle), (118, middle)), ((222, middle - 8), (336, up[1])), ((222, middle + 8), (336, down[1]))]
        ways += [((464, up[1]), (578, middle - 8)), ((464, down[1]), (578, middle + 8)), ((682, middle), (760, middle))]
        for way, value in zip(ways, values, strict=True):
            start, end = reversed(way) if turned else way
            arrow(axes, start, end, color)
            x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
            side = (end[1] + start[1]) / 2 - middle  # of the middle line: labels stand outside
            label(axes, x, y + (25 if side > 1 else -25 if side < -1 else -15), value, color, 12, weight="bold")

    def said(**values):
        return [f"{name} = {value:g}" for name, value in values.items()]

    lane(120, FORWARD, ("fork", "a = 3 x", "b = x²", "y = a + b"), said(x=X) * 3 + said(a=A, b=B, y=A + B), False)
    back = [*said(dx=DA + DB), f"{DA:g}", f"{DB:g}", *said(dy=DY) * 3]
    lane(320, BACKWARD, ("add", "3 · dy", "2 x · dy", "fork"), back, True)
    label(axes, 400, 24, "forward", FORWARD, 12, weight="bold")
    label(axes, 400, 224, "backward", BACKWARD, 12, weight="bold")
    label(axes, 400, 416, "by hand: y = 3x + x², dy/dx = 3 + 2x = 7", INK, 11)
    save(figure, __file__)


if __name__ == "__main__":
    draw()
