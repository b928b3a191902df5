"""What is said of a wrong gradient, rule by rule, on made arrays."""

import re

import numpy as np
import pytest

from scratchnet.exercises.diagnose import digits, error_of, times, wrong_values
from scratchnet.exercises.exercise import Knows
from scratchnet.exercises.misshapen import wrong_shape

RNG = np.random.default_rng(0)
X, MATRIX, ROW = RNG.standard_normal((3, 4, 5, 2)), RNG.standard_normal((4, 5)), RNG.standard_normal(4)
SQUARE = RNG.standard_normal((4, 4))
GAIN = ROW[:, None, None]
GAINS, TWO = Knows(factors=[("gain", GAIN)]), Knows([("the first", X), ("the second", X**2)])
MASK, BORDER = X > 0, np.ones(X.shape, bool)
BORDER[:, :, 1:-1] = False


def late(array):
    """The same, but for one element."""
    array = array.copy()
    array[1, 2, 3, 1] += 1
    return array


VALUES = {
    "NaN": (np.where(MASK, np.nan, X), X, Knows(), r"\d+ of 120 numbers are NaN or infinite, the first at \(0, "),
    "0": (0 * X, X, Knows(), "0 everywhere"),
    "a known mistake": (X**2, X, Knows(wrongs=[("no", X**3), ("squared.", X**2)]), "^squared.$"),
    "a sign": (-X, X, Knows(), "only the sign is wrong"),
    "a mean missing": (3 * X, X, Knows(), r"3 times too large: not divided by N \(N = 3\): the mean over N is missing"),
    "a mean too many": (X / 3, X, Knows(), r"0.3333 times what it should be: divided by N \(N = 3\) once too often"),
    "a mean, twice": (X / 9, X, Knows(), "once too often.*, squared"),
    "a mean and a sign": (-3 * X, X, Knows(), "3 times too large, and of the other sign: not divided by N"),
    "twice": (2 * X, X, Knows(), "2 times too large: counted twice"),
    "half": (X / 2, X, Knows(), "0.5 times what it should be: halved"),
    "another factor": (1.7 * X, X, Knows(), "1.7 times too large: a mean or a sum, or a factor"),
    "nearly a factor": (1.001 * X, X, Knows(), "1.001 times what it should be: nearly right"),
    "a factor of an array": (X, X * GAIN, GAINS, "the factor gain is missing"),
    "a factor too many": (X * GAIN, X, GAINS, "by gain once too often"),
    "a factor twice too many": (X * GAIN ** 2, X, GAINS, "twice too often"),
    "divided": (X / GAIN, X * GAIN, GAINS, "divided by gain, where"),
    "a term": (X, X + X**2, TWO, "^the second is missing; the rest is right"),
    "a term's sign": (X - X**2, X + X**2, TWO, "^the second has the wrong sign"),
    "a term's factor": (X + 3 * X**2, X + X**2, TWO, "of the second every number is 3 times"),
    "transposed": (SQUARE.T, SQUARE, Knows(axes=("O", "I")), "transposed: O and I are exchanged"),
    "flipped": (X[:, :, ::-1], X, Knows(axes="NCHW"), "flipped along H."),
    "shifted": (np.roll(X, 1, 3), X, Knows(axes="NCHW"), "flipped along W|other places"),
    "shuffled": (np.roll(X, 1, 2), X, Knows(), "the right numbers stand in other places"),
    "no mask": (X, X * MASK, Knows(regions=[("x is low", ~MASK)]), r"\d+ of 120 .* 0, all of them where x is low"),
    "too much mask": (X * MASK, X, Knows(), r"right but for \d+ of 120 numbers that are 0 and should not be"),
    "no border": (X * ~BORDER, X, Knows(axes="NCHW"), "0 and should not be, all of them at the border of the picture"),
    "along": (X[:, :1] + 0 * X, X, Knows(axes="NCHW"), "the same all along C: a sum, or a mean, goes over too much"),
    "float32": (X.astype(np.float32).astype(float), X, Knows(), "nearly: [67] digits are right, and 11 are asked for"),
    "one number": (late(X), X, Knows(axes="NCHW"), "^1 of 120 numbers are wrong, all of them at N = 1; its cosine"),
    "another": (RNG.standard_normal(X.shape), X, Knows(), "no number is right, its cosine with the right one is -?0"),
}  # fmt: skip


@pytest.mark.parametrize("title", VALUES)
def test_what_wrong_numbers_look_like(title):
    claimed, true, knows, pattern = VALUES[title]
    assert_said(wrong_values("dx", claimed, true, {"N": 3, "M": 30}, knows), pattern)


SHAPES = {
    "transposed": (MATRIX.T, MATRIX, "transposed"),
    "a matrix": (X.transpose(1, 2, 3, 0).reshape(4, -1), X, "still as a matrix with one row per channel"),
    "maps": (X.transpose(1, 2, 3, 0), X, "axes in another order"),
    "a column": (ROW[:, None], ROW, "axes of size 1 are missing or too many"),
    "not summed": (MATRIX, MATRIX.sum(axis=1), "its sum over axis 1 would be right"),
    "not summed, twice": (X, X.sum(axis=(0, 2)), "its sum over axis 0 and 2 would be right"),
    "summed": (MATRIX.sum(axis=0), MATRIX, "it is summed over axis 0, where"),
    "averaged": (MATRIX.mean(axis=1), MATRIX, "it is averaged over axis 1, where"),
    "not spread": (X[:, :, :1, :1], X[:, :, :1, :1] + 0 * X, "each once: every place that it was summed from"),
    "the wrong axis": (RNG.standard_normal(5), ROW, "summed over the wrong axis"),
    "another order": (RNG.standard_normal((5, 4)), MATRIX, "the same sizes in another order"),
    "anything": (RNG.standard_normal((7, 7)), ROW, "a gradient has the shape of the array that it is for"),
}


@pytest.mark.parametrize("title", SHAPES)
def test_what_a_wrong_shape_looks_like(title):
    claimed, true, pattern = SHAPES[title]
    said = wrong_shape("dx", claimed, true)
    assert said.startswith(f"dx has shape {claimed.shape}, and {true.shape} is wanted: ")
    assert_said(said, pattern)


def assert_said(said, pattern):
    assert re.search(pattern, said), said


def test_digits_and_errors():
    assert [digits(error) for error in (0, 1e-17, 2e-16, 0.9e-15, 1e-3, 0.5, 7)] == [16, 16, 15, 15, 3, 0, 0]
    assert error_of(np.array([1.0, 2.5]), np.array([1.0, 2.0])) == 0.25
    assert error_of(np.array([0.0]), np.array([0.0])) == 0 and error_of(np.array([1e-9]), np.array([0.0])) == 1
    assert error_of(np.array([1e-9]), np.array([0.0]), floor=1.0) == 1e-9
    assert (
        times(1 / 3, {})
        == "every number is 0.3333 times what it should be: a mean or a sum, or a factor that is forgotten?"
    )
