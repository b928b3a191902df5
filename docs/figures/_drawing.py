"""What the course's figures share: a white page of its own, text that stays text, and a file that is the same each time."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patches import FancyBboxPatch, Rectangle  # noqa: E402

INK, FAINT = "#1f2933", "#8a94a0"
FORWARD, BACKWARD, WEIGHT = "#1d5fa8", "#b8321a", "#5b6670"  # read on white by those too who see no red or green
PALE = {FORWARD: "#e4eef9", BACKWARD: "#fbe6e1", WEIGHT: "#eef0f2"}

plt.rcParams |= {
    "svg.fonttype": "none",
    "svg.hashsalt": "scratchnet",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def sheet(width, height):
    """An empty drawing whose unit is a hundredth of an inch, y downwards; returns figure and axes."""
    figure = plt.figure(figsize=(width / 100, height / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def label(axes, x, y, text, color=INK, size=11, gid=None, **options):
    """Text around a point; `gid` is the id that its element has in the file."""
    options = {"ha": "center", "va": "center_baseline"} | options
    axes.text(x, y, text, color=color, fontsize=size, gid=gid, **options)


def arrow(axes, start, end, color=INK, bend=0.0, width=1.6, head=14):
    """An arrow between two points (x, y)."""
    style = {"arrowstyle": "-|>,head_length=0.45,head_width=0.22", "shrinkA": 0, "shrinkB": 0, "mutation_scale": head}
    style |= {"color": color, "lw": width, "connectionstyle": f"arc3,rad={bend}"}
    axes.annotate("", end, start, arrowprops=style)


def box(axes, x, y, width, height, text="", color=WEIGHT, size=11, round_by=8):
    """A box with its middle at (x, y), and text in it."""
    corner = x - width / 2, y - height / 2
    shape = f"round,pad=0,rounding_size={round_by}"
    axes.add_patch(FancyBboxPatch(corner, width, height, shape, fc=PALE.get(color, "white"), ec=color, lw=1.4))
    if text:
        label(axes, x, y, text, INK, size)


def table(axes, left, top, values, color, cell=(52, 26), gid=None, size=10, fill=None):
    """Numbers in cells from (left, top) on; the id of each is gid.row.column. Returns width and height."""
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            x, y = left + j * cell[0], top + i * cell[1]
            face = fill(i, j) if fill else PALE[color]
            axes.add_patch(Rectangle((x, y), *cell, fc=face, ec=color, lw=0.8))
            said = value if isinstance(value, str) else short(value)
            label(axes, x + cell[0] / 2, y + cell[1] / 2, said, INK, size, gid and f"{gid}.{i}.{j}")
    return len(values[0]) * cell[0], len(values) * cell[1]


def short(value):
    """A number with four decimals at most, and a minus that is one."""
    text = f"{value:.4f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "0") else text.replace("-", "−")


def save(figure, script):
    """Write the figure beside its script, as SVG."""
    path = Path(script).with_suffix(".svg")
    figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")
    plt.close(figure)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")
