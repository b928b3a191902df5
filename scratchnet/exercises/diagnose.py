"""What a wrong gradient looks like, in words: the array itself mostly says which mistake made it.

A typical mistake that the exercise knows of is looked for first, then what every gradient can have: a sign, a factor, a
missing term, another order, places that a mask should have cleared. What fits none of it is at least located.
"""

from itertools import combinations, permutations

import numpy as np

SAME = (
    1e-7  # relative to the largest number: a formula that is what it seems to be agrees far better, another far worse
)


def error_of(claimed, true, floor=0.0):
    """The largest difference, relative to the largest number of `true`, or to `floor` where that is larger."""
    scale = max(np.abs(true).max(initial=0), floor)
    error = np.abs(claimed - true).max(initial=0)
    return float(error / scale) if scale else float(error > 0)


def digits(error):
    """How many digits are right."""
    return 16 if error <= 0 else max(0, min(16, int(-np.log10(error))))


def same(a, b):
    """Whether two arrays are one but for rounding."""
    return np.shape(a) == np.shape(b) and error_of(np.asarray(a), np.asarray(b)) < SAME


def wrong_values(name, claimed, true, sizes, knows):
    """One or two sentences on an array of the right shape with wrong numbers.

    Args:
        name: "dx".
        claimed, true: arrays of one shape; true is not 0 everywhere.
        sizes: letter -> number, as in `Case`.
        knows: a `Knows`.
    """
    rules = _finite, _zero, _typical, _precision, _sign, _constant, _factor, _terms, _places, _masked, _constant_along
    for rule in rules:
        if said := rule(claimed, true, sizes, knows):
            return said
    return _located(claimed, true, knows)


def _finite(claimed, true, sizes, knows):
    bad = ~np.isfinite(claimed)
    if bad.any():
        return (
            f"{bad.sum()} of {bad.size} numbers are NaN or infinite, the first at {_first(bad)}: a division by 0, a "
            "logarithm of 0, exp of a large number, or an array from np.empty that was not filled?"
        )


def _zero(claimed, true, sizes, knows):
    if not claimed.any():
        return "it is 0 everywhere: made with zeros, and never written into?"


def _typical(claimed, true, sizes, knows):
    for sentence, array in knows.wrongs:
        if same(claimed, array) and not same(array, true):
            return sentence


def _sign(claimed, true, sizes, knows):
    if same(-claimed, true):
        return "only the sign is wrong."


def _constant(claimed, true, sizes, knows):
    ratio = float((claimed * true).sum() / (true * true).sum())
    if not same(claimed, ratio * true):
        return None
    return times(ratio, sizes)


def times(ratio, sizes):
    """What a constant factor means."""
    ratio = float(ratio)
    if abs(ratio - 1) < 0.02 and abs(ratio - 1) > 0:
        return f"every number is {ratio:.9g} times what it should be: nearly right; rounded somewhere, or eps twice?"
    said = f"every number is {abs(ratio):.4g} times {'too large' if abs(ratio) > 1 else 'what it should be'}"
    said += ", and of the other sign" * (ratio < 0)
    missing = "not divided by {0} ({0} = {1:.4g}): the mean over {0} is missing"
    too_often = "divided by {0} ({0} = {1:.4g}) once too often, or not multiplied by it"
    for power in (1, 2):
        for letter, value in sizes.items():
            for factor, what in ((value, missing), (1 / value, too_often)):
                if value not in (1, 2, 0.5) and abs(abs(ratio) / factor**power - 1) < 1e-6:
                    return f"{said}: {what.format(letter, value)}{', squared' * (power == 2)}."
    for factor, what in ((2, "counted twice?"), (0.5, "halved, or one of two equal parts is missing?")):
        if abs(abs(ratio) / factor - 1) < 1e-6:
            return f"{said}: {what}"
    return f"{said}: a mean or a sum, or a factor that is forgotten?"


def _factor(claimed, true, sizes, knows):
    for name, factor in knows.factors:
        for found, what in (
            (claimed * factor, f"the factor {name} is missing."),
            (claimed / factor, f"it is multiplied by {name} once too often."),
            (claimed * factor * factor, f"it is divided by {name}, where it should be multiplied by it."),
            (claimed / factor / factor, f"it is multiplied by {name} twice too often."),
        ):
            if same(found, true):
                return what
    return None


def _terms(claimed, true, sizes, knows):
    if len(knows.terms) < 2:
        return None
    columns = np.stack([np.broadcast_to(term, true.shape).ravel() for _, term in knows.terms], axis=1)
    weights, *_ = np.linalg.lstsq(columns, claimed.ravel(), rcond=None)
    if not same((columns @ weights).reshape(true.shape), claimed):
        return None
    said = [_weight(name, weight, sizes) for (name, _), weight in zip(knows.terms, weights, strict=True)]
    return f"{_and(filter(None, said))}; the rest is right." if any(said) else None


def _weight(name, weight, sizes):
    if abs(weight - 1) < 1e-6:
        return None
    if abs(weight) < 1e-6:
        return f"{name} is missing"
    if abs(weight + 1) < 1e-6:
        return f"{name} has the wrong sign"
    return f"of {name} {times(weight, sizes).rstrip('.')}"


def _places(claimed, true, sizes, knows):
    if not same(np.sort(claimed, axis=None), np.sort(true, axis=None)):
        return None
    letters = _letters(true, knows)
    for axes in permutations(range(true.ndim)):
        if claimed.transpose(axes).shape == true.shape and same(claimed.transpose(axes), true):
            moved = [letters[k] for k, axis in enumerate(axes) if k != axis]
            return f"the right numbers, transposed: {_and(moved)} are exchanged."
    for count in range(1, true.ndim + 1):
        for axes in combinations(range(true.ndim), count):
            if same(np.flip(claimed, axes), true):
                return f"the right numbers, flipped along {_and(letters[axis] for axis in axes)}."
    return "the right numbers stand in other places: transposed, reshaped in another order, or shifted?"


def _masked(claimed, true, sizes, knows):
    wrong = ~np.isclose(claimed, true, rtol=SAME, atol=SAME * np.abs(true).max())
    where = next((f", all of them where {name}" for name, region in knows.regions if _all_in(wrong, region)), "")
    if not true[wrong].any() and wrong.mean() < 0.9:
        return (
            f"right but for {wrong.sum()} of {wrong.size} numbers that should be 0{where}: there y does not move with x. "
            "A mask is missing, or a bound of it."
        )
    if not claimed[wrong].any() and wrong.mean() < 0.9:
        where = where or _confined(wrong, knows)
        return f"right but for {wrong.sum()} of {wrong.size} numbers that are 0 and should not be{where}."
    return None


def _all_in(wrong, region):
    return region.shape == wrong.shape and region.any() and not (wrong & ~region).any()


def _constant_along(claimed, true, sizes, knows):
    letters = _letters(true, knows)
    axes = [axis for axis in range(true.ndim) if true.shape[axis] > 1 and same(claimed, _spread(claimed, axis))]
    axes = [axis for axis in axes if not same(true, _spread(true, axis))]
    if axes:
        return f"it is the same all along {_and(letters[axis] for axis in axes)}: a sum, or a mean, goes over too much."
    return None


def _spread(array, axis):
    return np.broadcast_to(array.take([0], axis), array.shape)


def _precision(claimed, true, sizes, knows):
    error = error_of(claimed, true)
    if error < 1e-5:
        what = "did a float32 number come in between, or eps where it does not belong?"
        return f"nearly: {digits(error)} digits are right, and 11 are asked for: {what}"
    return None


def _located(claimed, true, knows):
    wrong = ~np.isclose(claimed, true, rtol=SAME, atol=SAME * np.abs(true).max())
    cosine = float((claimed * true).sum() / np.sqrt((claimed * claimed).sum() * (true * true).sum()))
    far = f"its cosine with the right one is {cosine:.2f}"
    if wrong.all():
        return f"no number is right, {far} (1 is the same direction): a wrong factor that varies, or a wrong term."
    return f"{wrong.sum()} of {wrong.size} numbers are wrong{_confined(wrong, knows)}; {far}."


def _confined(wrong, knows):
    """In which part of an array all that is wrong is, where that says something."""
    letters = _letters(wrong, knows)
    border = np.zeros(wrong.shape, bool)
    for axis, size in enumerate(wrong.shape):
        seen = np.flatnonzero(wrong.any(axis=tuple(k for k in range(wrong.ndim) if k != axis)))
        if len(seen) == 1 < size:
            return f", all of them at {letters[axis]} = {seen[0]}"
        if letters[axis] in "HW":
            np.moveaxis(border, axis, 0)[[0, -1]] = True
    return ", all of them at the border of the picture" if border.any() and not (wrong & ~border).any() else ""


def _letters(array, knows):
    return knows.axes or tuple(f"axis {k}" for k in range(array.ndim))


def _first(bad):
    return tuple(map(int, np.argwhere(bad)[0]))


def _and(names):
    *most, last = [str(name) for name in names]
    return f"{', '.join(most)} and {last}" if most else last
