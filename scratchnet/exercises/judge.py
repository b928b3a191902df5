"""How close is a learner's backward? Its gradients in every case, its manners, and what the library's own instruments say.

Where every gradient agrees with the derivative of the forward (questions.py), `gradcheck` has the last word, by complex
steps and by differences, both with the adjoint test, and the loops of `reference.py` have theirs.
"""

from typing import NamedTuple

import numpy as np

import scratchnet as sn
from scratchnet.exercises.diagnose import digits, error_of, same, wrong_values
from scratchnet.exercises.exercise import Knows
from scratchnet.exercises.learner import NotWritten, Problem
from scratchnet.exercises.manners import MANNERS, manners
from scratchnet.exercises.questions import FLOOR, as_tuple, ask, forward_of, inputs_of, questions, said_with

RTOL = 1e-11


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


def judge(exercise, learner):
    """Ask a learner's file everything that there is to ask; returns a `Verdict`."""
    answers: list = []
    stopped: list = []
    complaints: dict = {}
    for question in questions(exercise):
        try:
            answers.append(ask(exercise, learner, question, complaints))
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
        found = manners(exercise, learner, [answer.question for answer in answers])
        rows += [Row(said is None, what, said or MANNERS[what]) for what, said in found]
    if all(row.holds for row in rows):
        rows += _evidence(exercise, learner, answers)
    elif exercise.order and not stopped:
        more += _on_the_way(exercise, answers)
    return Verdict(rows, more)


# What the rows say ------------------------------------------------------------------------------------------------------


def _runs(stopped, answers):
    if not stopped:
        return Row(True, "runs", f"in every case: {_labels(answers)}")
    problem = stopped[0][1]
    if not answers:
        return Row(False, "runs", problem.sentence)
    at = _and(case.label for case, _ in stopped)
    return Row(False, "runs", f"for {_labels(answers)}, but stops for {at}: {problem.sentence}")


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
    return _and(answer.question.case.label for answer in answers)


def _and(labels):
    *most, last = labels
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
            place = f"d{name}[{', '.join(map(str, at))}]"
            said = f"For example {place} is {claimed[at]:.6g}, and the derivative is {true[name][at]:.6g}"
            return [said + said_with(answer.question.case) + "."]
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
                f"On the way back, from the last layer to the first, {so_far} d{bad[0]} is the first that is not: look at "
                "the lines in between."
            ]
    return []


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
    forward = forward_of(exercise, learner, case)
    count = len(case.arrays)

    def backward(dy, back):
        result = learner.call(back, dy)
        kept = [value for value in as_tuple(exercise, result) if value is not None]
        return tuple(kept) if count > 1 else kept[0]

    for method, what in (("complex-step", "complex step"), ("finite-difference", "differences")):
        try:
            report = sn.gradcheck((forward, backward), inputs_of(case), method=method)
        except (sn.GradientMismatch, Problem) as error:
            yield Row(False, what, str(error))
            continue
        *arrays, adjoint = report.rows
        checked, worst = sum(row.checked for row in arrays), max(row.error for row in arrays)
        said = f"{checked} numbers agree to {digits(worst)} digits, and to {digits(adjoint.error)} in the adjoint test"
        yield Row(True, what, said)
