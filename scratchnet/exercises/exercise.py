"""What an exercise consists of: which lines are given, which are to be written, and what the judge asks of them."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """One question to a learner's backward.

    Attributes:
        label: what is special about it, as it reads behind "wrong for": "stride 2".
        arrays: name -> float64 array of everything that has a gradient, in the order of the arguments; the first is x.
        options: what forward takes besides.
        sizes: letter -> number, by which a wrong factor is named.
        smooth: whether differences may be taken too: no kink within their step.
    """

    label: str
    arrays: dict[str, np.ndarray]
    options: tuple = ()
    sizes: dict[str, float] = {}
    smooth: bool = True


class Knows(NamedTuple):
    """What is known of one gradient of one case, so that a wrong one can be named.

    Attributes:
        terms: (name, array) pairs whose sum is the right gradient.
        factors: (name, array) pairs that the right gradient is multiplied by, of a shape that broadcasts to it.
        wrongs: (sentence, array) pairs: what typical mistakes give.
        regions: (name, array of booleans) pairs: places that a mask tells apart.
        axes: what its axes are called, such as "NCHW".
    """

    terms: Sequence[tuple[str, Any]] = ()
    factors: Sequence[tuple[str, Any]] = ()
    wrongs: Sequence[tuple[str, Any]] = ()
    regions: Sequence[tuple[str, Any]] = ()
    axes: Sequence[str] = ()


class Exercise(NamedTuple):
    """One step of the course.

    Attributes:
        name: of the exercise, its folder and its file.
        teaches: one line for the list.
        chapter: of the course, a file in docs/course.
        problem: what is asked, for the docstring of the file; formulas of the forward, shapes.
        source: the module of the library that it is made from, which also is the solution.
        given: names in it that stand in the file as they are; of a class, "Name: method, method".
        todo: the name whose body is removed, "function" or "Class.method".
        returns: the names of the arrays whose gradients backward returns, in order.
        run: (namespace, arrays, options) -> (y, cache, back) by the functions of a namespace; back(dy) gives the gradients.
        cases: (rng) -> list of `Case`; the first is the plain one.
        reference: (dy, arrays, options) -> gradients by loops over single numbers.
        knows: (dy, arrays, options) -> {name of an array: `Knows`}.
        hints: an idea, a formula, and nearly the lines; "[[TAG.1]]" stands for a formula of the library's docstring.
        solution: names to show when it is solved, besides `todo`: "module:name".
        contract: (namespace) -> (what, complaint or None) pairs that are asked besides; through it a module is looked at.
        tools: names that the file imports besides those that its lines use: "module:name".
        order: the arrays in the order in which backward meets them, where that is a long way; else empty.
    """

    name: str
    teaches: str
    chapter: str
    problem: str
    source: str
    given: tuple[str, ...]
    todo: str
    returns: tuple[str, ...]
    run: Callable
    cases: Callable
    reference: Callable
    knows: Callable
    hints: tuple[str, str, str]
    solution: tuple[str, ...] = ()
    contract: Callable | None = None
    tools: tuple[str, ...] = ()
    order: tuple[str, ...] = ()

    @property
    def library(self):
        """The library's own functions, as a namespace."""
        return import_module(self.source)


def pair(name):
    """A `run` for `<name>_forward(*arrays, *options) -> (y, …, cache)` and `<name>_backward(dy, cache)`."""

    def run(namespace, arrays, options):
        y, *_, cache = getattr(namespace, f"{name}_forward")(*arrays, *options)
        return y, cache, lambda dy: getattr(namespace, f"{name}_backward")(dy, cache)

    return run


def path(name):
    """A `run` for `<name>_forward(x, weight, *options) -> y` and `<name>_backward(dy, x, weight, *options)`."""

    def run(namespace, arrays, options):
        y = getattr(namespace, f"{name}_forward")(*arrays, *options)
        return y, tuple(arrays), lambda dy: getattr(namespace, f"{name}_backward")(dy, *arrays, *options)

    return run
