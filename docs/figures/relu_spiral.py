"""What ReLU does to a spiral that lies in few dimensions and in many: chapter 10, after Sandler et al. 2018, figure 1.

A spiral of the plane is put into n dimensions by a random matrix T, goes through ReLU, and comes back by the pseudo-inverse
of T. What comes back is what a linear layer behind the ReLU could make of it at best, if it had to undo T.
"""

import numpy as np
from _drawing import plt, save

DIMENSIONS = 2, 3, 5, 15, 30
POINTS, DRAWS, PIECES = 300, 101, 20


def spiral(points=POINTS):
    """(2, points): three turns outwards, centred, from -1 to 1."""
    turn = np.linspace(0, 1, points)
    xy = turn * np.array([np.cos(6 * np.pi * turn), np.sin(6 * np.pi * turn)])
    return xy - xy.mean(axis=1, keepdims=True)


def through_relu(x, n, rng):
    """(2, points) -> what is behind the ReLU, (n, points), and what comes back from it, (2, points)."""
    t = rng.standard_normal((n, 2))
    y = np.maximum(t @ x, 0)
    return y, np.linalg.pinv(t) @ y


def lost(x, seen):
    """The share of the variance of x that no linear map of what is seen explains: 0 is nothing, 1 is everything."""
    centred = seen - seen.mean(axis=1, keepdims=True)
    missing = x - x @ np.linalg.pinv(centred) @ centred
    return (missing**2).sum() / (x**2).sum()


def tried(n):
    """For each of `DRAWS` random matrices: what is lost of what came back, and behind the ReLU; zeros; the picture."""
    rng, x = np.random.default_rng(0), spiral()
    for _ in range(DRAWS):
        y, back = through_relu(x, n, rng)
        yield lost(x, back), lost(x, y), (y <= 0).all(axis=0).mean(), back


def main():
    """Draw it, and print the numbers."""
    figure, axes = plt.subplots(2, 3, figsize=(8.4, 5.8), layout="constrained")
    pictures = [("the spiral", spiral())]
    for n in DIMENSIONS:
        draws = sorted(tried(n), key=lambda draw: draw[0])
        middle = draws[len(draws) // 2]  # the typical one is shown
        behind, zeros = np.median([draw[1] for draw in draws]), np.mean([draw[2] for draw in draws])
        print(f"{n:2} dimensions: {middle[0]:.2f} lost, {behind:.2f} behind the ReLU, {zeros:.2f} are 0 everywhere")
        pictures.append((f"{n} dimensions", middle[3]))
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.92, PIECES))
    for place, (title, points) in zip(axes.flat, pictures, strict=True):
        for k, colour in enumerate(colours):
            piece = points[:, k * POINTS // PIECES : (k + 1) * POINTS // PIECES + 1]
            place.plot(*piece, color=colour, linewidth=2.4, solid_capstyle="round")
        place.set(title=title, aspect="equal", xticks=[], yticks=[])
        place.spines[:].set_visible(False)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    save(figure, __file__)


if __name__ == "__main__":
    main()
