"""What a backward must do whatever its numbers are: keep its hands off what it is given, keep float32, add and not set."""

import numpy as np

from scratchnet.exercises.diagnose import same
from scratchnet.exercises.learner import Problem
from scratchnet.exercises.questions import as_tuple, copy_of, forwards, in_cache

MANNERS = {  # what is said where a property holds
    "hands off": "dy, the inputs and the cache are as they were, and a second call says the same",
    "float32": "stays float32",
    "memory": "dy may lie in any memory order",
    "adds": "gradients are added to those that are there",
    "one shot": "a second backward after one forward is refused",
    "fits": "a dy of another shape than y is refused",
    "frozen": "a frozen parameter gets nothing",
}


def manners(exercise, learner, asked):
    """(what, complaint or None) for each property.

    Args:
        exercise, learner: whose file it is.
        asked: the `Question`s that were answered; the first is the plain case.
    """
    for what, ask in (("hands off", _hands_off), ("float32", _float32), ("memory", _memory_order)):
        said = None
        for question in asked if what == "hands off" else asked[:1]:
            try:
                said = said or ask(exercise, learner, question)
            except Problem as problem:
                said = problem.sentence
        yield what, said
    if exercise.contract:
        yield from exercise.contract(learner)


def _hands_off(exercise, learner, question):
    case, dy = question.case, copy_of(question.dy)
    values = [value.copy() for value in case.arrays.values()]
    _, cache, back = learner.call(exercise.run, learner, values, case.options)
    watched = {"dy": dy, **dict(zip(case.arrays, values, strict=True))}
    watched |= {f"the cache ({k})": value for k, value in enumerate(in_cache(cache))}
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
    values, dy = [value.copy() for value in question.case.arrays.values()], copy_of(question.dy)
    _, cache, back = learner.call(exercise.run, learner, values, question.case.options)
    for value in (dy, *values, *in_cache(cache)):
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    try:
        learner.call(back, dy)
    except Problem as problem:
        if "read-only" in problem.sentence and problem.sentence.startswith("line "):
            return f" ({problem.sentence.partition(':')[0]})"
    return ""


def _copies(result):
    return [
        None if value is None else np.array(value) for value in (result if isinstance(result, tuple) else (result,))
    ]


def _float32(exercise, learner, question):
    values = [value.astype(np.float32) for value in question.case.arrays.values()]
    _, _, back = learner.call(exercise.run, learner, values, question.case.options)
    result = learner.call(back, question.dy.astype(np.float32) if isinstance(question.dy, np.ndarray) else question.dy)
    for name, value in zip(exercise.returns, as_tuple(exercise, result), strict=True):
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
        _, _, back = forwards(exercise, learner, question.case)
        results.append(_copies(learner.call(back, dy.copy(order=order) if isinstance(dy, np.ndarray) else dy)))
    for others in results[1:]:
        for name, a, b in zip(exercise.returns, results[0], others, strict=True):
            if a is not None and np.isfinite(a).all() and not same(b, a):
                return f"d{name} depends on how dy lies in memory: reshape only what as_matrix or as_maps gives"
    return None


# Of a module -----------------------------------------------------------------------------------------------------------


def of_module(namespace, make, dy):
    """(what, complaint or None) on the contract of a module that `make() -> (module, y)` makes anew.

    Args:
        namespace: the learner's file, by which calls are made.
        make: the module, after one forward.
        dy: a gradient that fits.
    """
    layer, _ = make()
    namespace.call(layer.backward, dy.copy())
    once = {name: parameter.grad.copy() for name, parameter in layer.named_parameters()}
    yield "adds", _adds(namespace, make, dy, once)
    yield "one shot", _one_shot(namespace, make, dy)
    yield "fits", _refuses(namespace, make, dy)
    yield "frozen", _frozen(namespace, make, dy)


def _adds(namespace, make, dy, once):
    layer, _ = make()
    start, grads = {}, {}
    for name, parameter in layer.named_parameters():
        start[name] = np.full(parameter.data.shape, 0.25)
        parameter.grad[...] = 0.25
        grads[name] = parameter.grad
    namespace.call(layer.backward, dy.copy())
    for name, parameter in layer.named_parameters():
        grown = parameter.grad - start[name]
        if parameter.grad is not grads[name]:
            return f"{name}.grad is another array now: add to the one that is there (+=), others hold it too"
        if np.allclose(grown, once[name], rtol=1e-9, atol=1e-12):
            continue
        if np.allclose(parameter.grad, once[name], rtol=1e-9, atol=1e-12):
            return (
                f"{name}.grad is set, where it has to be added to (+=): a weight that is used twice would lose one half"
            )
        if not grown.any():
            return f"{name}.grad stays as it was: nothing is added to it"
        return f"{name}.grad grows by something else than the gradient when it is not 0 before"
    return None


def _one_shot(namespace, make, dy):
    layer, _ = make()
    namespace.call(layer.backward, dy.copy())
    try:
        layer.backward(dy.copy())
    except RuntimeError:
        return None
    except Exception as error:
        return (
            f"a second backward after one forward should raise RuntimeError, and raises {type(error).__name__}: {error}"
        )
    return "a second backward after one forward is accepted: take_cache(dy) hands the cache out once"


def _refuses(namespace, make, dy):
    layer, _ = make()
    try:
        layer.backward(np.zeros((len(dy) + 1, *dy.shape[1:])))
    except ValueError as error:
        if "as forward returned" in str(error):
            return None
        return f"a dy of another shape than y stops somewhere inside ({error}): hand dy to take_cache(dy), which refuses it"
    except Exception as error:
        return (
            f"a dy of another shape than y raises {type(error).__name__}: hand dy to take_cache(dy), which refuses it"
        )
    return "a dy of another shape than y is accepted: hand dy to take_cache(dy), which refuses it"


def _frozen(namespace, make, dy):
    layer, _ = make()
    name, first = next(layer.named_parameters())
    first.requires_grad = False
    try:
        namespace.call(layer.backward, dy.copy())
    except Exception as error:
        return f"stops where {name} is frozen (requires_grad = False): {error}"
    if first.grad.any():
        return f"{name} is frozen (requires_grad = False) and still gets a gradient: add_gradients leaves such out"
    return None
