"""The exercises on modules: the contract of a layer, and a shortcut around one."""

import numpy as np

import scratchnet as sn
from scratchnet import reference
from scratchnet.exercises.exercise import Case, Exercise, Knows
from scratchnet.exercises.first import PLAIN, linear_cases, linear_knows, linear_reference
from scratchnet.exercises.manners import of_module


def _module_run(namespace, arrays, options):
    layer, y = _linear_module(namespace, arrays)

    def back(dy):
        for parameter in layer.parameters():
            parameter.grad[...] = 0
        dx = layer.backward(dy)
        return (dx, *(parameter.grad for parameter in layer.parameters()), *[None] * (3 - len(arrays)))

    return y, None, back


def _linear_module(namespace, arrays):
    x, weight, *bias = arrays
    layer = namespace.Linear(*weight.shape[::-1], bias=bool(bias), dtype=weight.dtype)
    for parameter, value in zip(layer.parameters(), (weight, *bias), strict=True):
        parameter.data, parameter.grad = value, np.zeros_like(value)
    return layer, layer.forward(x)


def _module_contract(namespace):
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal(shape) for shape in ((4, 7), (5, 7), (5,))]
    yield from of_module(namespace, lambda: _linear_module(namespace, arrays), rng.standard_normal((4, 5)))


MODULE = Exercise(
    name="module",
    teaches="the contract of every layer: the cache serves once, gradients add, dx is handed on",
    chapter="05-module",
    problem="""
        the backward of a module.

        The pair `linear_forward`, `linear_backward` of the first exercise is given now. A module is what stands around
        such a pair: it holds the parameters, keeps what forward saved, and adds to its parameters' gradients. Its
        backward gets dy (N, out_features), returns dx (N, in_features), and

            takes what forward saved      self.take_cache(dy): once; a second backward raises, and so does a dy that does
                                          not have y's shape
            adds, and does not set        parameter.grad += …, since a weight may be used more than once, and a batch
                                          may come in parts
            leaves frozen parameters      parameter.requires_grad says so; `is_trained` asks, of None (no bias) too, and
                                          `add_gradients(parameters, gradients)` adds to those that are trained

        self.pair(kind_of(dy)).backward is `linear_backward`, in the fastest version that there is.
    """,
    source="scratchnet.layers.linear",
    given=("Linear: __init__, multiplied, forward, backward, pair",),
    todo="Linear.backward",
    returns=("x", "weight", "bias"),
    run=_module_run,
    cases=lambda rng: [case for case in linear_cases(rng) if case.label in (PLAIN, "no bias")],
    reference=linear_reference,
    knows=linear_knows,
    hints=(
        "Four things in a row: take the cache, call the pair's backward, add the two gradients, return "
        "dx. No mathematics is left.",
        "linear_backward(dy, cache, wants) returns dx, dweight, dbias. wants is (weight is trained, bias "
        "is trained), so that nothing is computed that nobody wants.",
        "cache = self.take_cache(dy); wants = is_trained(self.weight), is_trained(self.bias); then "
        "dx, dweight, dbias = self.pair(kind_of(dy)).backward(dy, cache, wants); then "
        "add_gradients((self.weight, self.bias), (dweight, dbias)); and return dx.",
    ),
    contract=_module_contract,
)


# A shortcut ------------------------------------------------------------------------------------------------------------


def _residual_cases(rng):
    x, square, other = (
        rng.standard_normal((3, 4, 5, 2)),
        rng.standard_normal((4, 4, 1, 1)),
        rng.standard_normal((3, 4, 1, 1)),
    )
    return [
        Case(PLAIN, {"x": x, "body": square}, ("square",)),
        Case("a body that hands x on as it is", {"x": x}, ("identity",)),
        Case(
            "a layer in the shortcut", {"x": x, "body": other, "shortcut": rng.standard_normal((3, 4, 1, 1))}, ("both",)
        ),
    ]


def _residual(namespace, arrays, options):
    """The module with its parameters, after one forward."""
    x, *weights = arrays
    convs = [sn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False, dtype=weight.dtype) for weight in weights]
    for conv, weight in zip(convs, weights, strict=True):
        conv.weight.data, conv.weight.grad = weight, np.zeros_like(weight)
    body = convs[0] if convs else sn.Identity()
    layer = namespace.Residual(body, *convs[1:])
    return layer, layer.forward(x)


def _residual_run(namespace, arrays, options):
    layer, y = _residual(namespace, arrays, options)

    def back(dy):
        for parameter in layer.parameters():
            parameter.grad[...] = 0
        dx = layer.backward(dy)
        grads = [parameter.grad for parameter in layer.parameters()]
        return (dx, *grads, *[None] * (2 - len(grads)))

    return y, None, back


def _residual_knows(dy, arrays, options):
    x, *weights = arrays
    through = [np.einsum("oc,nohw->nchw", weight[:, :, 0, 0], dy) for weight in weights]
    ways = {"square": (dy, *through), "identity": (dy, dy), "both": through[::-1]}[options[0]]
    names = (
        "what comes back around the body" + (", through the shortcut's layer," * (len(weights) > 1)),
        "what comes back through the body",
    )
    wrongs = (
        []
        if len(weights) < 2
        else [("dy goes around the body as it is, where the shortcut's layer should take it back.", dy)]
    )
    if len(weights) == 1:
        wrongs.append(("only what comes back through the body: the way around it, dy itself, is missing.", through[0]))
        wrongs.append(("only what goes around the body: what comes back through it is missing.", dy))
        twice = np.einsum("oc,nohw->nchw", weights[0][:, :, 0, 0], through[0])
        wrongs.append(("the body's backward is given what came back through it already.", dy + twice))
    return {
        "x": Knows(list(zip(names, ways, strict=True)) if options[0] != "identity" else (), (), wrongs, axes="NCHW")
    }


def _residual_reference(dy, arrays, options):
    x, *weights = arrays
    plain, dx = ((1, 1), (0, 0), (1, 1), 1), np.zeros(x.shape)
    gradients: list = []
    for weight in weights:
        back, dweight, _ = reference.conv2d_backward(dy, x, weight, *plain)
        dx, gradients = dx + back, [*gradients, dweight]
    for _ in range(2 - len(weights)):  # what has no layer hands dy on as it is
        dx = dx + dy
    return dx, *gradients


def _residual_contract(namespace):
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal((3, 4, 5, 2)), rng.standard_normal((4, 4, 1, 1))
    asked = of_module(namespace, lambda: _residual(namespace, [x, weight], ()), rng.standard_normal(x.shape))
    yield from (row for row in asked if row[0] != "frozen")  # that is the body's


RESIDUAL = Exercise(
    name="residual",
    teaches="x that is used twice: its gradients add",
    chapter="09-residual",
    problem="""
        the backward of a shortcut.

            y = s(x) + f(x)       f the body; s the shortcut's layer, or x itself where there is none

        body and shortcut are modules with a forward and a backward of their own: backward(dy) of each hands back what comes
        back to its x, and adds to its parameters' gradients. Take the cache first (there is nothing in it, but a second
        backward is refused by it, and a dy that does not fit). `add(a, b)` adds activations in the memory order of the
        library, and `sum_backward(dy, 2)` hands dy to both sides of a sum. Mind that a module may hand back the very
        array that it got: write into none.
    """,
    source="scratchnet.exercises.worked",
    given=("Residual: __init__, forward, backward",),
    todo="Residual.backward",
    returns=("x", "body", "shortcut"),
    run=_residual_run,
    cases=_residual_cases,
    reference=_residual_reference,
    knows=_residual_knows,
    hints=(
        "A sum hands dy to both of its sides, unchanged. Each side takes it back to x in its own way. x "
        "moves y through both ways, so what comes back through them adds.",
        "dx = Jₛᵀ dy + J_fᵀ dy, the two products being shortcut.backward(dy) and body.backward(dy); "
        "without a layer in the shortcut the first is dy itself.",
        "self.take_cache(dy), then around = self.shortcut.backward(dy) if self.shortcut else dy, then return "
        "add(around, self.body.backward(dy)).",
    ),
    solution=("scratchnet.layers.join:sum_backward", "scratchnet.steps:Fork._add", "scratchnet.steps:Fork.backward"),
    contract=_residual_contract,
)
