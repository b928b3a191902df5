"""What the figures of chapters 7 to 11 share: one look, and a file that is the same whenever it is made.

Each script beside this one draws one figure: `python docs/figures/NAME.py` writes docs/figures/NAME.svg (extra `plot`).
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 (after the backend is chosen)

BLUE, ORANGE, GREEN, RED, GREY = "#1f6fb2", "#d9730d", "#2b8a4b", "#c0392b", "#6b6f76"

plt.rcParams.update({
    "svg.hashsalt": "scratchnet",  # or every run would name its parts anew
    "svg.fonttype": "none",  # text stays text
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",  # so that it reads on a dark page too
})  # fmt: skip


def save(figure, script):
    """Write the figure beside its script, as SVG."""
    path = Path(script).with_suffix(".svg")
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.15)
    # matplotlib ends some lines with a space
    path.write_text("\n".join(line.rstrip() for line in path.read_text(encoding="utf-8").splitlines()) + "\n", "utf-8")
