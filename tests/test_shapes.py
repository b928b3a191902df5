"""The drawn stand-in: the same bytes for a seed, balanced classes, shapes that are what their names say."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchnet.data import shapes
from scratchnet.data.dataset import fingerprint
from scratchnet.data.shapes import CLASSES, SHAPES, draw_shapes

SINGLE = ("disc", "ring", "square", "frame", "triangle", "cross")


@pytest.fixture(scope="module")
def drawn():
    return draw_shapes(2000, 500, seed=3)


@pytest.fixture
def plain(monkeypatch):
    """No noise and no gradient, so that a picture holds its two colours and mixtures of them."""
    monkeypatch.setattr(shapes, "NOISE", 0)
    monkeypatch.setattr(shapes, "LIGHT", 0)


def coverage(name, count=300, seed=0):
    return shapes._cover(np.full(count, CLASSES.index(name)), np.random.default_rng(seed))


def test_both_sets_have_the_form_of_cifar10(drawn):
    for dataset, count in zip(drawn, (2000, 500), strict=True):
        assert dataset.images.shape == (count, 3, 32, 32) and dataset.images.dtype == np.uint8
        assert dataset.labels.shape == (count,) and dataset.labels.dtype == np.int64
        assert dataset.classes == CLASSES and len(CLASSES) == 10
        assert dataset.name == "drawn shapes"


def test_the_same_seed_gives_the_same_bytes_on_every_machine():
    train, test = draw_shapes(30, 20, seed=0)
    assert fingerprint(train) == "cacca99c5ee558adaa48a140adaadd3ac4994a9a087b5e08ac10593aa10836a0"
    assert fingerprint(test) == "8c104cae58211e85512eddc56ea711f8c5aebddfef10bcbdca7844562079de87"


def test_seeds_and_sets_differ_from_each_other():
    sets = [*draw_shapes(20, 20, seed=0), *draw_shapes(20, 20, seed=1)]
    assert len({fingerprint(dataset) for dataset in sets}) == 4
    pictures = np.concatenate([dataset.images for dataset in sets]).reshape(80, -1)
    assert len(np.unique(pictures, axis=0)) == 80


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 45), st.integers(0, 45), st.integers(0, 2**32))
def test_classes_are_balanced_to_one_picture_for_any_size(train, test, seed):
    for dataset, count in zip(draw_shapes(train, test, seed), (train, test), strict=True):
        assert len(dataset.images) == len(dataset.labels) == count
        frequency = np.bincount(dataset.labels, minlength=10)
        assert frequency.max() - frequency.min() <= 1


def test_classes_come_in_random_order(drawn):
    labels = drawn[0].labels
    assert 0.05 < (labels[1:] == labels[:-1]).mean() < 0.15  # 0 in cyclic order, 1 in sorted order
    assert (labels[10:] == labels[:-10]).mean() < 0.15


AREAS = {  # in pixels, from size r and thickness t; of the patterns, of a 32×32 picture with whole periods
    "disc": lambda r, t: np.pi * (0.85 * r) ** 2,
    "ring": lambda r, t: np.pi * (r**2 - (r * (0.45 + 0.2 * t)) ** 2),
    "square": lambda r, t: (1.42 * r) ** 2,
    "frame": lambda r, t: (1.42 * r) ** 2 - (2 * r * (0.32 + 0.14 * t)) ** 2,
    "triangle": lambda r, t: 3 * np.sqrt(3) * (0.5 * r) ** 2,
    "cross": lambda r, t: 4 * (r * (0.18 + 0.12 * t)) * (1.9 * r - r * (0.18 + 0.12 * t)),
    "stripes across": lambda r, t: 1024 * (0.4 + 0.2 * t),
    "stripes down": lambda r, t: 1024 * (0.4 + 0.2 * t),
    "checkerboard": lambda r, t: 1024 / 2,
    "dots": lambda r, t: 1024 * np.pi * (0.24 + 0.08 * t) ** 2,
}


def covered_by(name, size, turn, thickness, x0, y0):
    u, v = shapes._rotated_grid(turn, x0, y0)
    size, thickness = (values.astype(np.float32)[:, None, None] for values in (size, thickness))
    return shapes._share(SHAPES[name](u, v, size, thickness))


@pytest.mark.parametrize("name", CLASSES)
def test_a_shape_covers_its_area_with_edges_that_move_smoothly_over_the_pixels(name):
    rng, count = np.random.default_rng(0), 200
    size = rng.uniform(8, 12, count) if name in SINGLE else np.full(count, 8.0)
    turn = rng.uniform(-np.pi, np.pi, count) if name in SINGLE else np.zeros(count)
    thickness, (x0, y0) = rng.random(count), rng.uniform(-2, 2, (2, count))
    covered = covered_by(name, size, turn, thickness, x0, y0)
    np.testing.assert_allclose(covered.sum((1, 2)), AREAS[name](size, thickness), rtol=0.04)
    moved = covered_by(name, size, turn, thickness, x0 + 0.01, y0 + 0.01)  # by a hundredth of a pixel along each axis
    assert 0.005 < np.abs(moved - covered).max() < 0.015


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_shape_lies_inside_the_picture(name):
    covered = coverage(name)
    edge = np.ones((32, 32), bool)
    edge[1:-1, 1:-1] = False
    assert (covered[:, edge].sum(1) <= 0.05 * covered.sum((1, 2))).all()
    assert (covered.sum((1, 2)) >= 30).all()


@pytest.mark.parametrize("name", set(CLASSES) - set(SINGLE))
def test_a_pattern_repeats_at_least_twice_across_the_picture(name):
    covered = coverage(name)
    assert (covered.reshape(-1, 4, 8, 4, 8).mean((2, 4)) > 0).sum((1, 2)).min() >= 8  # of 16 tiles of 8×8


@pytest.mark.parametrize(("name", "along"), [("stripes across", 1), ("stripes down", 2)])
def test_tilt_never_turns_stripes_across_into_stripes_down(name, along):
    covered = coverage(name)
    change = {axis: np.abs(np.diff(covered, axis=axis)).sum((1, 2)) for axis in (1, 2)}
    assert (change[along] > 2 * change[3 - along]).all()


def test_foreground_and_background_differ_in_every_channel(plain):
    images = draw_shapes(500, 0)[0].images
    spread = images.max((2, 3)).astype(int) - images.min((2, 3))
    assert spread.min() >= 255 * shapes.CONTRAST - 1


def test_colour_says_nothing_about_the_class():
    train, _ = draw_shapes(5000, 0)
    middle = train.images[:, :, 16, 16].astype(float)  # near the shape's centre, mostly foreground
    corner = train.images[:, :, 0, 0].astype(float)  # background
    for colour in (middle, corner):
        of_class = np.stack([colour[train.labels == c].mean(0) for c in range(10)])
        standard_error = colour.std() / np.sqrt(500)
        assert np.abs(of_class - colour.mean(0)).max() < 5 * standard_error


def test_noise_and_light_stay_within_their_bounds(monkeypatch):
    lit, _ = draw_shapes(200, 0)
    monkeypatch.setattr(shapes, "NOISE", 0)
    smooth, _ = draw_shapes(200, 0)
    monkeypatch.setattr(shapes, "LIGHT", 0)
    flat, _ = draw_shapes(200, 0)
    noise = lit.images.astype(float) - smooth.images
    light = smooth.images.astype(float) - flat.images
    assert 5 < np.abs(noise).max() <= 255 * 0.12 + 1 and abs(noise.mean()) < 0.2
    assert 20 < np.abs(light).max() <= 255 * 0.25 * np.sqrt(2) + 1


def test_the_whole_set_takes_less_than_5_seconds_and_little_memory():
    start = time.process_time()  # of this process: other programs on the machine do not count
    draw_shapes()
    assert time.process_time() - start < 5
    tracemalloc.start()
    draw_shapes()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6000 * 3072 + 30e6


@pytest.mark.parametrize("sizes", [(-1, 5), (5, -1)])
def test_a_negative_size_is_refused(sizes):
    with pytest.raises(ValueError, match=r"must not be negative, got train=-?\d, test=-?\d"):
        draw_shapes(*sizes)
