"""What a learner's backward is asked, and what it answers.

Each case of an exercise comes with a random dy and with the right gradients. Those are not the library's backward's, but
the derivative of the forward, by complex steps (gradcheck/probe.py), so that nothing has to be believed.
"""

import functools
from typing import NamedTuple

import numpy as np

from scratchnet.exercises.diagnose import error_of, same
from scratchnet.exercises.exercise import Case
from scratchnet.exercises.learner import NotWritten, Problem
from scratchnet.exercises.misshapen import wrong_shape
from scratchnet.gradcheck.probe import Probe

FLOOR = 1e-3  # an array whose gradients are all but 0 is judged by this fraction of the largest gradient


class Question(NamedTuple):
    """A case with what comes in from above, what forward gives, and the right gradients, name -> array."""

    case: Case
    y: object
    dy: object
    true: dict


class Answer(NamedTuple):
    """What backward said to a question: name -> gradient."""

    question: Question
    claimed: dict

    def error(self, name):
        """How far a gradient is off, relative to the right one; NaN is as far as can be."""
        true = self.question.true
        largest = max(np.abs(value).max() for value in true.values())
        error = error_of(self.claimed[name], true[name], FLOOR * largest)
        return np.inf if np.isnan(error) else error


@functools.cache
def questions(exercise):
    """Every case of an exercise with its right answer."""
    found = []
    for k, case in enumerate(exercise.cases(np.random.default_rng(0))):
        y, *_ = exercise.run(exercise.library, list(case.arrays.values()), case.options)
        dy = _upstream(y, np.random.default_rng(k))
        found.append(Question(case, y, dy, _derivatives(exercise, case, dy)))
    return found


def ask(exercise, learner, question, complaints):
    """The gradients of one case, as an `Answer`; what is no gradient at all goes to complaints (array -> sentence)."""
    case, true = question.case, question.true
    y, cache, back = forwards(exercise, learner, case)
    if not isinstance(y, np.ndarray | np.generic) or not same(y, question.y):
        raise Problem("forward no longer gives what it gave: it has been changed, put the given lines back")
    try:
        result = learner.call(back, copy_of(question.dy))
    except NotWritten:
        raise
    except Problem as problem:
        shapes = {"dy": question.dy, **case.arrays}
        said = [f"{name} {value.shape}" for name, value in shapes.items() if isinstance(value, np.ndarray)]
        said += [f"cache: {', '.join(str(value.shape) for value in in_cache(cache))}"] if in_cache(cache) else []
        raise Problem(problem.sentence, *problem.lines, f"Shapes there: {'; '.join(said)}.") from problem
    claimed = {}
    names = [name for name in exercise.returns if name in case.arrays]
    for name, value in zip(exercise.returns, as_tuple(exercise, result), strict=True):
        if name not in names:
            if value is not None:
                complaints[f"d{name}"] = f"must be None for {case.label}, got {_kind(value)}"
            continue
        if value is None:
            wrong = f"d{name} is None: it has to be computed and returned"
        elif not isinstance(value, np.ndarray | np.generic):
            wrong = f"d{name} must be an array, got {_kind(value)}"
        elif value.dtype.kind not in "f":
            wrong = f"d{name} must hold floats, got {value.dtype}"
        elif value.shape != true[name].shape:
            wrong = wrong_shape(f"d{name}", np.asarray(value), true[name])
        else:
            claimed[name] = np.array(value)
            continue
        complaints.setdefault(f"d{name}", wrong + said_with(case))
    return Answer(question, claimed)


def forwards(exercise, learner, case):
    """(y, cache, back) by the learner's file, on arrays of its own."""
    return learner.call(exercise.run, learner, [value.copy() for value in case.arrays.values()], case.options)


def copy_of(dy):
    """dy once more, in its memory order; a loss's is a number."""
    return dy.copy(order="K") if isinstance(dy, np.ndarray) else dy


def said_with(case):
    """The case in brackets, where it is not the plain one."""
    return f" ({case.label})" if case.label != "the plain case" else ""


def as_tuple(exercise, result):
    """What backward returned, one for each array."""
    wanted = exercise.returns
    said = ", ".join(f"d{name}" for name in wanted)
    if result is None and len(wanted) == 1:
        raise Problem("backward returns nothing: end it with a return")
    found = result if isinstance(result, tuple) else (result,)
    if len(found) != len(wanted):
        got = _kind(result) if len(found) == 1 else f"{len(found)} things"
        what = "nothing: end it with a return of" if result is None else f"{got}; wanted is"
        raise Problem(f"backward returns {what} {said}")
    return found


def _kind(value):
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _upstream(y, rng):
    """A random dy in the memory order of y; never ones, with which much that is wrong cancels."""
    if not y.shape:
        return float(rng.uniform(1.5, 2.5))  # of a loss
    dy = np.empty_like(y)
    dy[...] = rng.standard_normal(y.shape)
    return dy


def _derivatives(exercise, case, dy):
    """Name -> the derivative of Σ dy · y by every number of that array, by complex steps through the library's forward."""
    probe = Probe((forward_of(exercise, exercise.library, case), None), inputs_of(case))
    names = {("x" if k == 0 else f"x{k}"): name for k, name in enumerate(case.arrays)}
    found = {}
    for at, name in names.items():
        value = probe.arrays()[at]
        found[name] = np.empty(value.shape)
        for index in np.ndindex(value.shape):
            unit = np.zeros(value.shape)
            unit[index] = 1
            found[name][index] = probe.derivative({at: unit}, dy, "complex-step")
    return found


def inputs_of(case):
    """The arrays as `gradcheck` takes those of a pair."""
    values = tuple(case.arrays.values())
    return values if len(values) > 1 else values[0]


def forward_of(exercise, namespace, case):
    """(arrays) -> (y, back), as `gradcheck` takes a pair's forward."""

    def forward(*arrays):
        y, _, back = exercise.run(namespace, list(arrays), case.options)
        return y, back

    return forward


def in_cache(cache):
    """The arrays in a cache, however it is nested."""
    if isinstance(cache, np.ndarray):
        return [cache]
    return [found for part in cache for found in in_cache(part)] if isinstance(cache, tuple | list) else []
