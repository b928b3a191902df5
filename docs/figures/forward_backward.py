"""One training step of a small network on one drawn shape: what went forward, and the gradient that came back to it.

python docs/figures/forward_backward.py      writes forward_backward.svg beside this file (extra `plot`)
"""

import numpy as np
from _drawing import BACKWARD, FORWARD, INK, arrow, label, plt, save

import scratchnet as sn
from models.mobilenetv2 import conv_bn, inverted_residual
from scratchnet.data.shapes import CLASSES, draw_shapes
from scratchnet.training.schedule import one_cycle

BATCH, STEPS = 64, 150  # pictures a step, and steps before the one that is shown
SHOWN = 4  # channels of an activation
WIDTH, HEIGHT = 1120, 520


def network(rng):
    """Four parts; shown is what comes out of each."""
    make = {"dtype": np.float32, "rng": rng}
    return [
        ("convolution", conv_bn(3, 16, 3, 1, **make)),
        ("inverted residual", inverted_residual(16, 24, 6, 2, False, **make)),
        ("inverted residual", inverted_residual(24, 32, 6, 2, False, **make)),
        ("mean, linear", sn.Sequential(sn.GlobalAvgPool2d(), sn.Flatten(), sn.Linear(32, 10, rng=rng))),
    ]


def train(model, criterion, data):
    """Steps after which the network knows most of the shapes, but not all."""
    batches = sn.Batches(data, BATCH, seed=0, drop_last=True)
    optimizer = sn.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    while optimizer.steps < STEPS:
        for x, labels in batches:
            if optimizer.steps < STEPS:
                optimizer.lr = one_cycle(optimizer.steps, total=STEPS, lr=0.1)
                sn.train_step(model, criterion, optimizer, x, labels)


def step(parts, criterion, x, labels):
    """Forward and backward by hand, part by part: what each gave, and the gradient with respect to it, for all of x."""
    seen = [x]
    for part in parts:
        seen.append(part(seen[-1]))
    loss = criterion(seen[-1], labels)
    gradients = [criterion.backward()]
    for part in reversed(parts):
        gradients.append(part.backward(gradients[-1]))
    return loss, seen, gradients[::-1]


def tiles(maps, order):
    """Some channels (C, H, W) as one picture, two by two with a line between."""
    side = maps.shape[1]
    sheet = np.full((2 * side + 1, 2 * side + 1), np.nan)
    for place, channel in enumerate(order[:SHOWN]):
        row, column = (side + 1) * (place // 2), (side + 1) * (place % 2)
        sheet[row : row + side, column : column + side] = maps[channel]
    return sheet


def frame(figure, left, top, size):
    """Axes for a picture, in hundredths of an inch from the upper left corner."""
    axes = figure.add_axes((left / WIDTH, 1 - (top + size) / HEIGHT, size / WIDTH, size / HEIGHT))
    axes.set(xticks=[], yticks=[])
    return axes


def show(axes, values, gradient):
    """An activation, the darker the larger its size; or a gradient, blue where more would help, red where less would."""
    top = np.nanmax(np.abs(values))
    colours = {"cmap": "RdBu_r", "vmin": -top, "vmax": top} if gradient else {"cmap": "Blues", "vmin": 0, "vmax": top}
    axes.imshow(values if gradient else np.abs(values), interpolation="nearest", **colours)
    axes.spines[:].set(visible=False)


def bars(axes, values, color, right):
    """Ten numbers, one a class; the class that is right has its name in bold."""
    axes.barh(range(10), values, color=color)
    axes.set_yticks(range(10), CLASSES, fontsize=9)
    axes.get_yticklabels()[right].set_fontweight("bold")
    axes.yaxis.tick_right()
    axes.invert_yaxis()
    axes.axvline(0, color=INK, lw=0.8)
    axes.tick_params(length=0)
    axes.spines[:].set(visible=False)


def main():
    """Train, take one step apart, draw it."""
    parts = network(np.random.default_rng(0))
    model, criterion = sn.Sequential(*(part for _, part in parts)), sn.CrossEntropyLoss()
    data, unseen = draw_shapes(BATCH * 40, BATCH)
    train(model, criterion, data)
    x, labels = (unseen.images / np.float32(255)).astype(np.float32), unseen.labels
    loss, seen, gradients = step([part for _, part in parts], criterion, x, labels)
    # The picture whose right class got nearest to a half: neither certain nor lost, so that there is something to learn.
    chances = np.exp(seen[-1] - seen[-1].max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    which = int(np.argmin(np.abs(chances[np.arange(BATCH), labels] - 0.5)))

    figure = plt.figure(figsize=(WIDTH / 100, HEIGHT / 100))
    page = figure.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    page.set_axis_off()
    size, gap, left, above, below = 158, 52, 24, 72, 306
    for place, (y, dy) in enumerate(zip(seen, gradients, strict=True)):
        at = left + place * (size + gap)
        middle = at + size / 2
        forward, backward = frame(figure, at, above, size), frame(figure, at, below, size)
        y, dy = y[which], dy[which] * BATCH  # the loss is a mean over the batch: times its size, of this picture alone
        if place == 0:
            forward.imshow(y.transpose(1, 2, 0))
            forward.spines[:].set(visible=False)
            show(backward, dy.sum(axis=0), gradient=True)
        elif y.ndim == 3:
            order = np.argsort(-np.abs(dy).sum(axis=(1, 2)), kind="stable")
            show(forward, tiles(y, order), gradient=False)
            show(backward, tiles(dy, order), gradient=True)
        else:
            bars(forward, y, FORWARD, labels[which])
            bars(backward, dy, BACKWARD, labels[which])
        shape = "×".join(map(str, y.shape)) + (" logits" if y.ndim == 1 else "")
        label(page, middle, above + size + 16, shape if place else f"a picture, {shape}", size=10)
        label(
            page,
            middle,
            below - 16,
            "∂loss/∂" + ("picture" if place == 0 else "logits" if y.ndim == 1 else "y"),
            size=10,
        )
        if place:
            between = at - gap / 2
            arrow(page, (between - 20, above + size / 2), (between + 20, above + size / 2), FORWARD, width=2)
            arrow(page, (between + 20, below + size / 2), (between - 20, below + size / 2), BACKWARD, width=2)
            label(page, between, above - 14, parts[place - 1][0], FORWARD, size=10)
    label(page, left, 26, "Forward: y = f(x), layer by layer", FORWARD, size=13, ha="left")
    label(
        page,
        left,
        HEIGHT - 26,
        "Backward: the gradient of the loss, from the last layer to the first",
        BACKWARD,
        13,
        ha="left",
    )
    save(figure, __file__)
    print(
        f"{CLASSES[labels[which]]}, probability {chances[which, labels[which]]:.2f}, loss of the batch {float(loss):.2f}"
    )


if __name__ == "__main__":
    main()
