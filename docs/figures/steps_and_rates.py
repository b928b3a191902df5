"""Three ways down a valley, and four schedules of the learning rate: chapter 11."""

import numpy as np
from _drawing import BACKWARD, FORWARD, WEIGHT, plt, save

import scratchnet as sn
from scratchnet.training.schedule import SCHEDULES

STEEP = np.array([1.0, 30.0])  # of the valley ½ Σ steep · p²
START, STEPS, TOTAL = (-2.6, 0.75), 30, 200
GREEN = "#2b7a45"
WAYS = (
    ("plain, rate 0.06", WEIGHT, {"lr": 0.06}),
    ("momentum 0.8, rate 0.02", BACKWARD, {"lr": 0.02, "momentum": 0.8}),
    ("Nesterov 0.8, rate 0.02", FORWARD, {"lr": 0.02, "momentum": 0.8, "nesterov": True}),
)


def path(options):
    """Where the optimizer is before each step and at the end: (STEPS + 1, 2)."""
    parameter = sn.Parameter(np.array(START))
    optimizer, places = sn.SGD([parameter], **options), [parameter.data.copy()]
    for _ in range(STEPS):
        parameter.grad[...] = STEEP * parameter.data
        optimizer.step()
        places.append(parameter.data.copy())
    return np.array(places)


def main():
    """Draw it."""
    figure, (left, right) = plt.subplots(2, 1, figsize=(7.6, 7), height_ratios=[1.1, 1], layout="constrained")
    grid = np.meshgrid(np.linspace(-3, 1.4, 200), np.linspace(-1, 1, 120))
    heights = (STEEP[0] * grid[0] ** 2 + STEEP[1] * grid[1] ** 2) / 2
    left.contour(*grid, heights, levels=[0.05, 0.3, 1, 2.5, 5, 9, 14], colors="#d5d9de", linewidths=0.9)
    for name, colour, options in WAYS:
        places = path(options)
        left.plot(*places.T, "o-", color=colour, markersize=3.5, linewidth=1.3, label=name)
        print(f"{name}: {np.hypot(*places[-1]):.4f} from the bottom after {STEPS} steps")
    left.set(title=f"{STEPS} steps down a valley that is 30 times as steep across as along", xticks=[], yticks=[])
    left.legend(frameon=False, loc="upper right")
    left.spines[:].set_visible(False)
    colours = {"constant": WEIGHT, "cosine": FORWARD, "one-cycle": BACKWARD, "multi-step": GREEN}
    for name, schedule in SCHEDULES.items():
        options = {"warmup": 20} if name == "cosine" else {}
        rates = [schedule(step, TOTAL, 1.0, **options) for step in range(TOTAL)]
        right.plot(rates, color=colours[name], label=name + ", warm-up 20" * (name == "cosine"), linewidth=1.8)
    right.set(xlabel="step", ylabel="rate / largest rate", title="schedules, of 200 steps")
    right.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.7))
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    save(figure, __file__)


if __name__ == "__main__":
    main()
