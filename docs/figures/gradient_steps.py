"""The error of a numeric derivative against its step: differences and the complex step."""

import numpy as np
from _drawing import BACKWARD, FORWARD, INK, WEIGHT, plt, save

X = 1.5


def f(x):
    """x³ / (1 + x²)."""
    return x * x * x / (1 + x * x)


EXACT = X * X * (3 + X * X) / (1 + X * X) ** 2

METHODS = {  # name: (derivative by a step h, colour, (style, width) of its line)
    "one-sided: (f(x + h) − f(x)) / h": (lambda h: (f(X + h) - f(X)) / h, WEIGHT, (":", 2)),
    "central: (f(x + h) − f(x − h)) / 2h": (lambda h: (f(X + h) - f(X - h)) / (2 * h), BACKWARD, ("--", 2)),
    "complex step: Im f(x + ih) / h": (lambda h: f(complex(X, h)).imag / h, FORWARD, ("-", 4)),
}


def draw():
    """One line a method; an error of 0 is drawn as that of the last bit."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    steps = 10.0 ** -np.arange(1, 20.01, 0.25)
    for name, (derivative, color, (style, width)) in METHODS.items():
        errors = [max(abs(derivative(float(h)) - EXACT) / EXACT, 1.1e-16) for h in steps]
        axes.loglog(steps, errors, style, color=color, lw=width, label=name, zorder=5 - width)
    axes.invert_xaxis()
    axes.set(xlabel="step h", ylabel="relative error", ylim=(3e-17, 30))
    axes.axhline(1.1e-16, color=INK, lw=0.6)
    axes.text(0.12, 1.5e-16, "the last bit of float64", fontsize=9, va="bottom")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.0, 1.02), fontsize=10)
    save(figure, __file__)


if __name__ == "__main__":
    draw()
