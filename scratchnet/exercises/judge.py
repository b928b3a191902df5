"""How close is a learner's backward? Its gradients against the derivative of the forward, and its manners.

The judge does not compare with the library's backward: it asks the forward, as `gradcheck` does, by complex steps
(probe.py). Where every array agrees, `gradcheck` itself has the last word, by complex steps and by differences, both with
the adjoint test, and the loops of `reference.py` theirs.
"""

import functools
from typing import NamedTuple

import numpy as np

import scratchnet as sn
from scratchnet.exercises.catalogue import COURSE
from scratchnet.exercises.diagnose import digits, error_of, same, wrong_shape, wrong_values
from scratchnet.exercises.exercise import Case, Knows
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


def judge(exercise, learner):
    """Ask a learner's file everything that there is to ask; returns a `Verdict`."""
    answers: list = []
    stopped: list = []
    complaints: dict = {}
    for question in questions(exercise):
        try:
            answers.append(_ask(exercise, learner, question, complaints))
        except NotWritten as problem:
            return Verdict([], [problem.sentence], written=False)
        except Problem as problem:
            stopped.append((question.case, problem))
            if not answers:
                break  # the plain case; there is more to see when that runs
    rows = [_runs(stopped, answers)]
    rows += [Row(False, what, said) for what, said in complaints.items()]
    rows += _arrays(exercise, answers)
    more = list(stopped[0][1].lines) if stopped else _example(rows, answers)
    if answers and not complaints:
        rows += _manners(exercise, learner, answers)
    if exercise.contract and not stopped:
        rows += [Row(said is None, what, said or "yes") for what, said in exercise.contract(learner)]
    if all(row.holds for row in rows):
        rows += _evidence(exercise, learner, answers)
    elif exercise.order and not stopped:
        more += _on_the_way(exercise, answers)
    return Verdict(rows, more)


@functools.cache
def _questions(name):
    exercise, found = COURSE[name], []
    for k, case in enumerate(exercise.cases(np.random.default_rng(0))):
        y, *_ = exercise.run(exercise.library, list(case.arrays.values()), case.options)
        dy = _upstream(y, np.random.default_rng(k))
        found.append(Question(case, y, dy, _derivatives(exercise, case, dy)))
    return found


def questions(exercise):
    """Every case with its right answer."""
    return _questions(exercise.name)


def _ask(exercise, learner, question, complaints):
    """The gradients of one case, as an `Answer`; what is no gradient at all goes to complaints (array -> sentence)."""
    case, true = question.case, question.true
    y, cache, back = _forwards(exercise, learner, case)
    if not isinstance(y, np.ndarray | np.generic) or not same(y, question.y):
        raise Problem("forward no longer gives what it gave: it has been changed, put the given lines back")
    try:
        result = learner.call(back, _copy(question.dy))
    except NotWritten:
        raise
    except Problem as problem:
        shapes = {"dy": question.dy, **case.arrays}
        said = [f"{name} {value.shape}" for name, value in shapes.items() if isinstance(value, np.ndarray)]
        said += [f"cache: {', '.join(str(value.shape) for value in _in_cache(cache))}"] if _in_cache(cache) else []
        raise Problem(problem.sentence, *problem.lines, f"Shapes there: {'; '.join(said)}.") from problem
    claimed = {}
    names = [name for name in exercise.returns if name in case.arrays]
    for name, value in zip(exercise.returns, _as_tuple(exercise, result), strict=True):
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
        complaints.setdefault(f"d{name}", wrong + _with(case))
    return Answer(question, claimed)


def _forwards(exercise, learner, case):
    """(y, cache, back) by the learner's file, on arrays of its own."""
    return learner.call(exercise.run, learner, [value.copy() for value in case.arrays.values()], case.options)


def _copy(dy):
    return dy.copy(order="K") if isinstance(dy, np.ndarray) else dy


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
    return Row(False, "runs", f"for {answers[0].question.case.label}, but stops for {case.label}: {problem.sentence}")


def _arrays(exercise, answers):
    """A row for each gradient: how many digits are right, or what it looks like."""
    rows: list = []
    heard: dict = {}
    for name in exercise.order or exercise.returns:
        asked = [answer for answer in answers if name in answer.claimed]
        right = [answer for answer in asked if answer.error(name) <= RTOL]
        wrong = [answer for answer in asked if answer.error(name) > RTOL]
        if wrong:
            said = _what_is_wrong(exercise, name, right, wrong)
            first = heard.setdefault(said, name)
            rows.append(Row(False, f"d{name}", said if first == name else f"the same as for d{first}"))
        elif right:
            rows.append(Row(True, f"d{name}", f"right to {digits(max(answer.error(name) for answer in right))} digits"))
    return rows


def _what_is_wrong(exercise, name, right, wrong):
    question = wrong[0].question
    case, true, claimed = question.case, question.true, wrong[0].claimed[name]
    known = exercise.knows(question.dy, list(case.arrays.values()), case.options).get(name, Knows())
    other = next((other for other in true if other != name and same(claimed, true[other])), None)
    if other:
        said = f"this is d{other}: the order in which they are returned is another."
    elif true[name].any():
        said = wrong_values(f"d{name}", claimed, true[name], case.sizes, known)
    else:
        said = f"it is to be 0 everywhere, and is {np.abs(claimed).max():.3g} somewhere"
    if right:
        return f"right for {_labels(right)}; wrong for {_labels(wrong)}: {said}"
    return said


def _labels(answers):
    *most, last = [answer.question.case.label for answer in answers]
    return f"{', '.join(most)} and {last}" if most else last


def _example(rows, answers):
    """One number of the first wrong gradient, beside what it should be."""
    for row in rows:
        for answer in answers:
            name, true = row.what.removeprefix("d"), answer.question.true
            if row.holds or name not in answer.claimed or answer.error(name) <= RTOL:
                continue
            claimed = answer.claimed[name]
            off = np.abs(claimed - true[name])
            at = tuple(map(int, np.unravel_index(np.argmax(np.where(np.isnan(off), np.inf, off)), off.shape)))
            said = f"For example d{name}[{', '.join(map(str, at))}] is {claimed[at]:.6g}, and the derivative is {true[name][at]:.6g}"
            return [said + _with(answer.question.case) + "."]
    return []


def _on_the_way(exercise, answers):
    """Where the first wrong array stands on a long way back."""
    for answer in answers:
        fine = [name for name in exercise.order if name in answer.claimed and answer.error(name) <= RTOL]
        bad = [name for name in exercise.order if name in answer.claimed and answer.error(name) > RTOL]
        if bad:
            before = [name for name in fine if exercise.order.index(name) < exercise.order.index(bad[0])]
            so_far = f"all is right as far as d{before[-1]}, and" if before else "nothing is right yet:"
            return [
                f"On the way back, from the last layer to the first, {so_far} d{bad[0]} is the first that is not: look at the "
                "lines in between."
            ]
    return []


# Manners ----------------------------------------------------------------------------------------------------------------


def _manners(exercise, learner, answers):
    """Rows on what a backward must not do."""
    for what, ask in (("hands off", _hands_off), ("float32", _float32), ("memory", _memory_order)):
        said = None
        for answer in answers if what == "hands off" else answers[:1]:
            try:
                said = said or ask(exercise, learner, answer.question)
            except Problem as problem:
                said = problem.sentence
        yield Row(said is None, what, said or MANNERS[what])


MANNERS = {
    "hands off": "dy, the inputs and the cache are as they were, and a second call says the same",
    "float32": "stays float32",
    "memory": "dy may lie in any memory order",
}


def _hands_off(exercise, learner, question):
    case, dy = question.case, _copy(question.dy)
    values = [value.copy() for value in case.arrays.values()]
    _, cache, back = learner.call(exercise.run, learner, values, case.options)
    watched = {"dy": dy, **dict(zip(case.arrays, values, strict=True))}
    watched |= {f"the cache ({k})": value for k, value in enumerate(_in_cache(cache))}
    before = {name: np.array(value) for name, value in watched.items()}
    first = _copies(learner.call(back, dy))
    for name, value in watched.items():
        if not np.array_equal(np.asarray(value), before[name], equal_nan=True):
            said = name.partition(" (")[0]
            return (
                f"{said} is changed in place{_which_line(exercise, learner, question)}: compute on an array of your own"
            )
    if exercise.contract:
        return None  # a module's cache serves once
    try:
        second = _copies(learner.call(back, dy))
    except Problem as problem:
        return f"a second call with the same cache stops: {problem.sentence}"
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True) if a is not None):
        return "a second call with the same dy and cache says something else: something is kept between calls"
    return None


def _which_line(exercise, learner, question):
    """Where it is written: the same once more with arrays that cannot be."""
    values, dy = [value.copy() for value in question.case.arrays.values()], _copy(question.dy)
    _, cache, back = learner.call(exercise.run, learner, values, question.case.options)
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
    return [
        None if value is None else np.array(value) for value in (result if isinstance(result, tuple) else (result,))
    ]


def _float32(exercise, learner, question):
    values = [value.astype(np.float32) for value in question.case.arrays.values()]
    y, _, back = learner.call(exercise.run, learner, values, question.case.options)
    result = learner.call(back, _upstream(y, np.random.default_rng(9)))
    for name, value in zip(exercise.returns, _as_tuple(exercise, result), strict=True):
        if value is not None and value.dtype != np.float32:
            return (
                f"d{name} is {value.dtype} where all that comes in is float32: np.zeros and np.empty want a dtype, and "
                "NumPy's own numbers (np.sqrt(2), np.float64(3)) widen an array where Python's do not"
            )
    return None


def _memory_order(exercise, learner, question):
    results = []
    for order in ("K", "C", "F"):
        dy = question.dy
        _, _, back = _forwards(exercise, learner, question.case)
        results.append(_copies(learner.call(back, dy.copy(order=order) if isinstance(dy, np.ndarray) else dy)))
    for others in results[1:]:
        for name, a, b in zip(exercise.returns, results[0], others, strict=True):
            if a is not None and np.isfinite(a).all() and not same(b, a):
                return f"d{name} depends on how dy lies in memory: reshape only what as_matrix or as_maps gives"
    return None


# Evidence ---------------------------------------------------------------------------------------------------------------


def _evidence(exercise, learner, answers):
    """Rows by the library's own instruments, once all agrees: gradcheck and the loops."""
    case = next((answer.question.case for answer in answers if answer.question.case.smooth), None)
    if case:
        yield from _gradcheck(exercise, learner, case)
    worst = 0.0
    for (case, _, dy, true), claimed in answers:
        loops = exercise.reference(dy, list(case.arrays.values()), case.options)
        largest = max(np.abs(value).max() for value in true.values())
        for name, loop in zip(true, loops, strict=True):
            worst = max(worst, error_of(claimed[name], loop, FLOOR * largest))
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
        *arrays, adjoint = report.rows
        checked, worst = sum(row.checked for row in arrays), max(row.error for row in arrays)
        said = f"{checked} numbers agree to {digits(worst)} digits, and to {digits(adjoint.error)} in the adjoint test"
        yield Row(True, what, said)
