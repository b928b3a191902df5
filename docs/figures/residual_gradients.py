"""The same 32 blocks in a chain and with shortcuts: gradients on the way back, and the loss: chapter 9."""

import numpy as np
from _drawing import BACKWARD, FORWARD, plt, save

import scratchnet as sn

BLOCKS, WIDTH, STEPS, SEEDS = 32, 16, 40, 3


def block(container, rng):
    """Two layers, each with batch norm."""
    make = {"bias": False, "rng": rng}
    first, second = sn.Linear(WIDTH, WIDTH, **make), sn.Linear(WIDTH, WIDTH, **make)
    return container(first, sn.BatchNorm1d(WIDTH), sn.ReLU(), second, sn.BatchNorm1d(WIDTH))


def network(container, seed):
    """2 features in, 2 classes out, and the blocks in between."""
    rng = np.random.default_rng(seed)
    blocks = [block(container, rng) for _ in range(BLOCKS)]
    return sn.Sequential(sn.Linear(2, WIDTH, rng=rng), *blocks, sn.Linear(WIDTH, 2, rng=rng))


def moons(rng, count=100):
    """Two half moons: (count, 2) and their labels."""
    angle, label = np.pi * rng.random(count), np.arange(count) % 2
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x[label == 1] = [1, 0.5] - x[label == 1]
    return (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32), label


def lengths(model, x, labels):
    """|gradient| of what goes into each block, from the first to the last, before anything was learnt."""
    criterion = sn.CrossEntropyLoss()
    for layer in model:
        x = layer(x)
    criterion(x, labels)
    dy, found = criterion.backward(), []
    for layer in reversed(list(model)):
        dy = layer.backward(dy)
        found.append(np.linalg.norm(dy))
    return found[-2:0:-1]  # without the two linear layers at the ends


def losses(model, x, labels):
    """The loss of each step."""
    optimizer, criterion = sn.SGD(model.parameters(), lr=0.01, momentum=0.9), sn.CrossEntropyLoss()
    return [float(sn.train_step(model, criterion, optimizer, x, labels)[0]) for _ in range(STEPS)]


def main():
    """Draw it."""
    x, labels = moons(np.random.default_rng(1))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    with sn.use_kernels(False):
        for container, colour, name in (
            (sn.Sequential, BACKWARD, "in a chain"),
            (sn.Residual, FORWARD, "with shortcuts"),
        ):
            for seed in range(SEEDS):
                said = {"color": colour, "label": name if not seed else None, "linewidth": 1.6}
                found = lengths(network(container, seed), x, labels)
                left.plot(range(1, BLOCKS + 1), found, **said)
                right.plot(range(1, STEPS + 1), losses(network(container, seed), x, labels), **said)
                print(f"{name}, seed {seed}: {found[0] / found[-1]:.3g} times as long at the first block")
    left.set(yscale="log", xlabel="block", ylabel="|dx| of the block", title="gradients before the first step")
    right.axhline(np.log(2), color="#8a94a0", linewidth=0.8)
    right.text(STEPS, np.log(2) * 1.7, "guessing", ha="right", color="#5b6670")
    right.set(xlabel="step", ylabel="loss", title="training", ylim=(1e-3, 20), yscale="log")
    left.legend(frameon=False)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    save(figure, __file__)


if __name__ == "__main__":
    main()
