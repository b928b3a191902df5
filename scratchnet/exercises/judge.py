"""How close is a learner's backward? Its gradients against the derivative of the forward, and its manners.

The judge does not compare with the library's backward: it asks the forward, as `gradcheck` does, by complex steps
(probe.py). Where every array agrees, `gradcheck` itself has the last word, by complex steps and by differences, both with
the adjoint test, and the loops of `reference.py` theirs.
"""

import contextlib
from typing import NamedTuple

import numpy as np

import scratchnet as sn
from scratchnet.exercises.diagnose import digits, error_of, same, wrong_shape, wrong_values
from scratchnet.exercises.exercise import Knows
from scratchnet.exercises.learner import NotWritten, Problem
from scratchnet.gradcheck.probe import Probe

RTOL = 1e-11
FLOOR = 1e-3  # an array whose gradients are all but 0 is judged by this fraction of the largest gradient


class Row(NamedTuple):
    """One property: whether it holds, of what it is, and what there is to say."""

    holds: bool
    what: str
    said: str


class Verdict(NamedTuple):
    """What the judge found, as rows, and lines that say more about the first thing that is wrong."""

    rows: list
    more: list
    written: bool = True

    @property
    def passed(self):
        """Whether all properties hold."""
        return self.written and all(row.holds for row in self.rows)


class Answer(NamedTuple):
    """What backward said in one case: name -> gradient, beside the right ones."""

    case: object
    claimed: dict
    true: dict
    dy: object


def judge(exercise, learner):
    """Ask a learner's file everything that there is to ask; returns a `Verdict`."""
    answers, stopped, complaints = [], [], {}
    for k, case in enumerate(exercise.cases(np.random.default_rng(0))):
        rng = np.random.default_rng(k)
        try:
            answers.append(_ask(exercise, learner, case, rng, complaints))
        except NotWritten as problem:
            return Verdict([], [problem.sentence], written=False)
        except Problem as problem:
            stopped.append((case, problem))
            if k == 0:
                break  # the plain case; there is more to see when that runs
    rows = [_runs(stopped, answers)]
    rows += [Row(False, what, said) for what, said in complaints.items()]
    rows += _arrays(exercise, answers)
    more = list(stopped[0][1].lines) if stopped else []
    if answers and not complaints:
        rows += _manners(exercise, learner, answers[0].case)
    if exercise.contract and not stopped:
        rows += [Row(said is None, what, said or "yes") for what, said in exercise.contract(learner)]
    if all(row.holds for row in rows):
        rows += _evidence(exercise, learner, answers)
    elif more == [] and exercise.order:
        more = _on_the_way(exercise, answers)
    return Verdict(rows, more)


def _ask(exercise, learner, case, rng, complaints):
    """The gradients of one case, as an `Answer`; what is no gradient at all goes to complaints (array -> sentence)."""
    arrays = {name: value.copy() for name, value in case.arrays.items()}
    y, _, back = learner.call(exercise.run, learner, list(arrays.values()), case.options)
    right, *_ = exercise.run(exercise.library, list(case.arrays.values()), case.options)
    if not isinstance(y, np.ndarray | np.generic) or not same(y, right):
        raise Problem("forward no longer gives what it gave: it has been changed, put the given lines back")
    dy = _upstream(y, rng)
    result = learner.call(back, dy)
    true = _derivatives(exercise, case, dy)
    claimed = {}
    names = [name for name in exercise.returns if name in case.arrays]
    for name, value in zip(exercise.returns, _as_tuple(exercise, result), strict=True):
        if name not in names:
            if value is not None:
                complaints[f"d{name}"] = f"must be None for {case.label}, got {_kind(value)}"
            continue
        if value is None:
            said = f"d{name} is None: it has to be computed and returned"
        elif not isinstance(value, np.ndarray | np.generic):
            said = f"d{name} must be an array, got {_kind(value)}"
        elif value.dtype.kind not in "f":
            said = f"d{name} must hold floats, got {value.dtype}"
        elif value.shape != true[name].shape:
            said = wrong_shape(f"d{name}", np.asarray(value), true[name])
        else:
            claimed[name] = np.array(value)
            continue
        complaints.setdefault(f"d{name}", said + _with(case))
    return Answer(case, claimed, true, dy)


def _with(case):
    return f" ({case.label})" if case.label != "the plain case" else ""


def _as_tuple(exercise, result):
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
    probe = Probe((_forward(exercise, exercise.library, case), None), _inputs(case))
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


def _inputs(case):
    values = tuple(case.arrays.values())
    return values if len(values) > 1 else values[0]


def _forward(exercise, namespace, case):
    def forward(*arrays):
        y, _, back = exercise.run(namespace, list(arrays), case.options)
        return y, back

    return forward


# What the rows say ------------------------------------------------------------------------------------------------------


def _runs(stopped, answers):
    if not stopped:
        return Row(True, "runs", "in every case")
    (case, problem), *_ = stopped
    if not answers:
        return Row(False, "runs", problem.sentence)
    return Row(False, "runs", f"for {answers[0].case.label}, but stops for {case.label}: {problem.sentence}")


def _arrays(exercise, answers):
    """A row for each gradient: how many digits are right, or what it looks like."""
    rows = []
    for name in exercise.returns:
        right, wrong, worst = [], [], 0.0
        for answer in answers:
            if name not in answer.claimed:
                continue
            largest = max((np.abs(value).max() for value in answer.true.values()), default=0.0)
            error = error_of(answer.claimed[name], answer.true[name], FLOOR * largest)
            (right if error <= RTOL else wrong).append(answer)  # NaN is wrong
            worst = max(worst, error)
        if wrong:
            rows.append(Row(False, f"d{name}", _what_is_wrong(exercise, name, right, wrong[0], len(wrong) == 1)))
        elif right:
            rows.append(Row(True, f"d{name}", f"right to {digits(worst)} digits"))
    return rows


def _what_is_wrong(exercise, name, right, answer, only):
    case = answer.case
    claimed, true = answer.claimed[name], answer.true[name]
    known = exercise.knows(answer.dy, list(case.arrays.values()), case.options).get(name, Knows())
    if true.any():
        said = wrong_values(f"d{name}", claimed, true, case.sizes, known)
    else:
        said = f"it is to be 0 everywhere, and is {np.abs(claimed).max():.3g} somewhere"
    if right and case.label != "the plain case":
        others = ", ".join(dict.fromkeys(other.case.label for other in right))
        return f"right for {others}, wrong for {case.label}: {said}"
    return said


def _on_the_way(exercise, answers):
    """Where the first wrong array stands on a long way back."""
    for answer in answers:
        fine = []
        for name in exercise.order:
            if name in answer.claimed and error_of(answer.claimed[name], answer.true[name]) <= RTOL:
                fine.append(name)
                continue
            before = f"right as far as d{fine[-1]}" if fine else "nothing is right yet"
            return [f"On the way back, from the last layer to the first, it is {before}, and d{name} is the first that is not:"
                    " look at the lines in between."] if name in answer.claimed else []  # fmt: skip
    return []


# Manners ----------------------------------------------------------------------------------------------------------------


def _manners(exercise, learner, case):
    """Rows on what a backward must not do, in the plain case."""
    for what, ask in (("hands off", _hands_off), ("float32", _float32), ("memory", _memory_order)):
        try:
            said = ask(exercise, learner, case)
        except Problem as problem:
            said = problem.sentence
        yield Row(said is None, what, said or MANNERS[what])


MANNERS = {
    "hands off": "dy, the inputs and the cache are as they were, and a second call says the same",
    "float32": "stays float32",
    "memory": "dy may lie in any memory order",
}


def _hands_off(exercise, learner, case):
    values = [value.copy() for value in case.arrays.values()]
    y, cache, back = learner.call(exercise.run, learner, values, case.options)
    dy = _upstream(y, np.random.default_rng(9))
    watched = {"dy": dy, **dict(zip(case.arrays, values, strict=True))}
    watched |= {f"the cache ({k})": value for k, value in enumerate(_in_cache(cache))}
    before = {name: np.array(value) for name, value in watched.items()}
    first = _copies(learner.call(back, dy))
    for name, value in watched.items():
        if not np.array_equal(np.asarray(value), before[name], equal_nan=True):
            said = name.partition(" (")[0]
            return f"{said} is changed in place{_which_line(exercise, learner, case)}: compute on an array of your own"
    if exercise.contract:
        return None  # a module's cache serves once
    try:
        second = _copies(learner.call(back, dy))
    except Problem as problem:
        return f"a second call with the same cache stops: {problem.sentence}"
    if not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True) if a is not None):
        return "a second call with the same dy and cache says something else: something is kept between calls"
    return None


def _which_line(exercise, learner, case):
    """Where it is written: the same once more with arrays that cannot be."""
    values = [value.copy() for value in case.arrays.values()]
    y, cache, back = learner.call(exercise.run, learner, values, case.options)
    dy = _upstream(y, np.random.default_rng(9))
    for value in (dy, *values, *_in_cache(cache)):
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    try:
        learner.call(back, dy)
    except Problem as problem:
        if "read-only" in problem.sentence and problem.sentence.startswith("line "):
            return f" ({problem.sentence.partition(':')[0]})"
    return ""


def _in_cache(cache):
    """The arrays in a cache, however it is nested."""
    if isinstance(cache, np.ndarray):
        return [cache]
    return [found for part in cache for found in _in_cache(part)] if isinstance(cache, tuple | list) else []


def _copies(result):
    return [None if value is None else np.array(value) for value in (result if isinstance(result, tuple) else (result,))]


def _float32(exercise, learner, case):
    values = [value.astype(np.float32) for value in case.arrays.values()]
    y, _, back = learner.call(exercise.run, learner, values, case.options)
    result = learner.call(back, _upstream(y, np.random.default_rng(9)))
    for name, value in zip(exercise.returns, _as_tuple(exercise, result), strict=True):
        if value is not None and value.dtype != np.float32:
            return (
                f"d{name} is {value.dtype} where all that comes in is float32: np.zeros and np.empty want a dtype, and "
                "NumPy's own numbers (np.sqrt(2), np.float64(3)) widen an array where Python's do not"
            )
    return None


def _memory_order(exercise, learner, case):
    values = [value.copy() for value in case.arrays.values()]
    results = []
    for order in (None, "C", "F"):
        y, _, back = learner.call(exercise.run, learner, values, case.options)
        dy = _upstream(y, np.random.default_rng(9))
        results.append(_copies(learner.call(back, dy if order is None or not y.shape else np.asarray(dy, order=order))))
    for others in results[1:]:
        for name, a, b in zip(exercise.returns, results[0], others, strict=True):
            if a is not None and not same(b, a):
                return f"d{name} depends on how dy lies in memory: reshape only what as_matrix or as_maps gives"
    return None


# Evidence ---------------------------------------------------------------------------------------------------------------


def _evidence(exercise, learner, answers):
    """Rows by the library's own instruments, once all agrees: gradcheck and the loops."""
    case = next((answer.case for answer in answers if answer.case.smooth), None)
    if case:
        yield from _gradcheck(exercise, learner, case)
    worst = 0.0
    for answer in answers:
        loops = exercise.reference(answer.dy, list(answer.case.arrays.values()), answer.case.options)
        names = [name for name in exercise.returns if name in answer.case.arrays]
        for name, loop in zip(names, loops, strict=True):
            largest = max(np.abs(value).max() for value in answer.true.values())
            worst = max(worst, error_of(answer.claimed[name], loop, FLOOR * largest))
    yield Row(worst <= RTOL, "reference.py", f"the loops over single numbers agree to {digits(worst)} digits")


def _gradcheck(exercise, learner, case):
    forward = _forward(exercise, learner, case)
    count = len(case.arrays)

    def backward(dy, back):
        result = learner.call(back, dy)
        kept = [value for value in _as_tuple(exercise, result) if value is not None]
        return tuple(kept) if count > 1 else kept[0]

    for method, what in (("complex-step", "complex step"), ("finite-difference", "differences")):
        try:
            report = sn.gradcheck((forward, backward), _inputs(case), method=method)
        except (sn.GradientMismatch, Problem) as error:
            yield Row(False, what, str(error))
            continue
        checked = sum(row.checked for row in report.rows[:-1])
        yield Row(True, what, f"{checked} numbers agree to {digits(report.rows[:-1] and max(r.error for r in report.rows[:-1]))}"
                              f" digits, and to {digits(report.rows[-1].error)} in the adjoint test")  # fmt: skip


@contextlib.contextmanager
def plain_functions():
    """Only what stands in the layers' files runs."""
    with sn.use_kernels(False):
        yield
