"""The drawn stand-in for CIFAR-10: ten classes of 32×32 pictures, made by arithmetic when there is no data to read.

A shape is a signed distance d(u, v): negative inside, positive outside, in pixels. The share of a pixel that the shape
covers is then `clip(½ - d, 0, 1)`, a ramp one pixel wide around the edge (anti-aliasing), and the picture is

    background + coverage · (foreground - background),  times a light gradient,  plus noise.            (SHAPES.1)

Every picture has its own centre, size, angle, thickness, colours, light and noise, all drawn alike for the ten classes,
so that only the shape tells the class. Per pixel there is nothing but + - × ÷ √ and uniform random numbers, which
IEEE 754 fixes to the last bit: the same seed gives the same bytes on every machine.
"""

from collections.abc import Callable

import numpy as np

from scratchnet.data.dataset import Dataset

NAME = "drawn shapes"
SIDE = 32  # pixels
CHUNK = 250  # pictures drawn at a time: about 10 MB of float32 work space, whatever the size of the set

RADIUS = (8.0, 14.0)  # pixels: circle around a single shape
PERIOD = (8.0, 12.0)  # pixels: of the four patterns, so that two to four periods fit across the picture
TILT = np.pi / 12  # stripes turn by at most 15°, or across and down would be one class
CONTRAST = 0.3  # least difference of foreground and background in each of R, G, B, of a range of 1
LIGHT = 0.25  # the light gradient changes brightness by at most this share at the picture's edges
NOISE = 0.12  # largest amplitude of the noise, of a range of 1; triangular, so σ is at most 0.12/√6 = 0.05

# Each function takes coordinates u, v (B, 32, 32) about the shape's centre and along its own axes, in pixels, the size
# r (B, 1, 1), in pixels, and a thickness t (B, 1, 1), in 0 … 1, and gives the signed distance (B, 32, 32). A shape
# stays inside the circle of radius r. Distances outside a corner are those of the corner's sides: the edge stays sharp.


def _disc(u, v, r, t):
    return np.sqrt(u * u + v * v) - 0.85 * r


def _ring(u, v, r, t):
    inner = r * (0.45 + 0.2 * t)
    return _hollow(np.sqrt(u * u + v * v), r, inner)


def _square(u, v, r, t):
    return np.maximum(np.abs(u), np.abs(v)) - 0.71 * r


def _frame(u, v, r, t):
    inner = r * (0.32 + 0.14 * t)
    return _hollow(np.maximum(np.abs(u), np.abs(v)), 0.71 * r, inner)


def _hollow(distance, outer, inner):
    return np.maximum(distance - outer, inner - distance)


def _triangle(u, v, r, t):
    slant = 0.866 * np.abs(u) - 0.5 * v  # the two sides that meet above the centre, one the mirror of the other
    return np.maximum(slant, v) - 0.5 * r


def _cross(u, v, r, t):
    u, v, arm = np.abs(u), np.abs(v), r * (0.18 + 0.12 * t)
    return np.maximum(np.minimum(u, v) - arm, np.maximum(u, v) - 0.95 * r)


def _stripe(v, period, share=0.5):
    """Signed distance to stripes that fill `share` of every period along v."""
    phase = v / period
    return (np.abs(phase - np.floor(phase) - 0.5) - 0.5 * share) * period


def _stripes_across(u, v, r, t):
    return _stripe(v, r, 0.4 + 0.2 * t)


def _stripes_down(u, v, r, t):
    return _stripe(u, r, 0.4 + 0.2 * t)


def _checkerboard(u, v, r, t):
    across, down = _stripe(u, r), _stripe(v, r)
    either, both = np.minimum(across, down), np.maximum(across, down)
    return np.maximum(either, -both)  # exclusive or: in either stripe and not in both


def _dots(u, v, r, t):
    u, v = _stripe(u, r, 0.0), _stripe(v, r, 0.0)  # distance to the middle of the nearest cell along each axis
    return np.sqrt(u * u + v * v) - r * (0.24 + 0.08 * t)


SHAPES: dict[str, Callable] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "frame": _frame,
    "triangle": _triangle,
    "cross": _cross,
    "stripes across": _stripes_across,
    "stripes down": _stripes_down,
    "checkerboard": _checkerboard,
    "dots": _dots,
}
CLASSES = tuple(SHAPES)
PATTERNS = [CLASSES.index(name) for name in ("stripes across", "stripes down", "checkerboard", "dots")]
STRIPES = PATTERNS[:2]


def draw_shapes(train: int = 5000, test: int = 1000, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Draw the stand-in data set, in the form in which `load_cifar10` returns CIFAR-10.

    The two sets come from two independent random streams. In each the ten classes are equally frequent (to one
    picture, where the size is no multiple of ten) and in random order.

    Args:
        train: pictures to train on; none or more.
        test: pictures to test on; none or more.
        seed: a non-negative integer; the same one gives the same bytes.

    Returns:
        Two `Dataset`s: images (N, 3, 32, 32) uint8, labels (N,) int64, named "drawn shapes".

    Raises:
        ValueError: a size is negative.
    """
    if train < 0 or test < 0:
        raise ValueError(f"draw_shapes: the numbers of pictures must not be negative, got train={train}, test={test}")
    for_train, for_test = np.random.default_rng(seed).spawn(2)
    return _draw(train, for_train), _draw(test, for_test)


def _draw(count: int, rng: np.random.Generator) -> Dataset:
    labels = rng.permutation(np.arange(count, dtype=np.int64) % len(CLASSES))
    images = np.empty((count, 3, SIDE, SIDE), np.uint8)
    for start in range(0, count, CHUNK):
        chunk = slice(start, start + CHUNK)
        images[chunk] = _paint(labels[chunk], rng)
    return Dataset(images, labels, CLASSES, NAME)


def _paint(labels, rng):
    """One chunk of pictures: labels (B,) -> (B, 3, 32, 32) uint8."""
    coverage = _cover(labels, rng)[:, None]  # (B, 32, 32) -> (B, 1, 32, 32)
    b = len(labels)
    background = rng.random((b, 3, 1, 1), np.float32)
    # A step of CONTRAST … 1 - CONTRAST, wrapped round at 1, changes every channel by at least CONTRAST and leaves the
    # foreground as evenly spread over all colours as the background.
    step = CONTRAST + (1 - 2 * CONTRAST) * rng.random((b, 3, 1, 1), np.float32)
    foreground = (background + step) % 1
    picture = background + coverage * (foreground - background)  # (SHAPES.1), then its light and its noise

    along, _ = _rotated_grid(2 * np.pi * rng.random(b))
    slope = LIGHT / (SIDE / 2) * rng.random((b, 1, 1), np.float32)
    picture *= (1 + slope * along)[:, None]

    amplitude = NOISE * rng.random((b, 1, 1, 1), np.float32)
    uniform = rng.random((b, 2, 3, SIDE, SIDE), np.float32)
    picture += amplitude * (uniform[:, 0] - uniform[:, 1])  # a difference of two: triangular around 0
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _cover(labels, rng):
    """The share of every pixel that the shape covers: labels (B,) -> (B, 32, 32) float32 in 0 … 1."""
    b = len(labels)
    is_pattern = np.isin(labels, PATTERNS)
    low, high = np.where(is_pattern[:, None], PERIOD, RADIUS).T
    size = low + (high - low) * rng.random(b)
    turn = np.where(np.isin(labels, STRIPES), TILT, np.pi) * (2 * rng.random(b) - 1)
    # A single shape keeps inside the picture; a pattern fills it, and its centre is only its phase.
    reach = np.where(is_pattern, high, SIDE / 2 - size)
    centre = reach * (2 * rng.random((2, b)) - 1)
    thickness = rng.random((b, 1, 1), np.float32)

    u, v = _rotated_grid(turn, *centre)
    size = size.astype(np.float32)[:, None, None]
    distance = np.empty((b, SIDE, SIDE), np.float32)
    for label, shape in enumerate(SHAPES.values()):
        of = labels == label
        distance[of] = shape(u[of], v[of], size[of], thickness[of])
    return _share(distance)


def _share(distance):
    """How much of a pixel lies inside an edge at this signed distance (in pixels) from its centre."""
    return np.clip(0.5 - distance, 0, 1)


def _rotated_grid(turn, x0=0.0, y0=0.0):
    """Pixel centres in axes that are turned by `turn` (B,), in radians, about (x0, y0), in pixels from the middle.

    Returns u, v (B, 32, 32) float32, in pixels.
    """

    def per_picture(values):  # in float64 up to here: libraries differ in a last bit of sin and cos, float32 drops it
        return np.broadcast_to(values, turn.shape).astype(np.float32)[:, None, None]

    cos, sin = per_picture(np.cos(turn)), per_picture(np.sin(turn))
    line = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    x, y = line - per_picture(x0), line[:, None] - per_picture(y0)
    return cos * x + sin * y, cos * y - sin * x
