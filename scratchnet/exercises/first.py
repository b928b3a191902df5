"""The first exercises: a product, a mask, a loss."""

import numpy as np

from scratchnet import reference
from scratchnet.array import as_matrix
from scratchnet.exercises.exercise import Case, Exercise, Knows, pair
from scratchnet.layers.loss import log_softmax

PLAIN = "the plain case"


def linear_cases(rng):
    """Of `LINEAR`, and of the module around it."""

    def case(label, n, ins, outs, bias=True):
        arrays = {"x": rng.standard_normal((n, ins)), "weight": rng.standard_normal((outs, ins))}
        arrays |= {"bias": rng.standard_normal(outs)} if bias else {}
        return Case(label, arrays, (), {"N": n, "in_features": ins, "out_features": outs})

    return [
        case(PLAIN, 4, 7, 5),
        case("as many outputs as inputs", 3, 5, 5),
        case("one picture", 1, 3, 2),
        case("no bias", 4, 3, 5, bias=False),
    ]


def _linear_run(namespace, arrays, options):
    x, weight, *bias = arrays
    y, cache = namespace.linear_forward(x, weight, *(bias or [None]))
    return y, cache, lambda dy: namespace.linear_backward(dy, cache)


def linear_reference(dy, arrays, options):
    """Of `LINEAR`, and of the module around it."""
    return reference.linear_backward(dy, *arrays[:2])[: len(arrays)]


def linear_knows(dy, arrays, options):
    """Of `LINEAR`, and of the module around it."""
    x, weight, *_ = arrays
    square = weight.shape[0] == weight.shape[1]
    return {
        "x": Knows(
            wrongs=[("W is multiplied where Wᵀ belongs (or the other way round).", dy @ weight.T)] if square else (),
            axes=("picture", "feature"),
        ),
        "weight": Knows(
            wrongs=[("dY · X is taken where dY · Xᵀ belongs.", x.T @ dy)] if square else (), axes=("row", "column")
        ),
    }


LINEAR = Exercise(
    name="linear",
    teaches="a product: which factor comes back transposed, and why dW is a sum over pictures",
    chapter="02-linear",
    problem="""
        the backward of a weighted sum.

            Y = W · X + bias        X (F × N), W (O × F), bias (O); one column a picture

        Backward gets dy = ∂loss/∂y, (N, O), and hands back three gradients, each of the shape of the array that it
        is for: dx (N, F), dweight (O, F), dbias (O,), or None where there is no bias. W and bias serve all pictures
        of the batch, so their gradients are sums over them. `as_matrix(x)` turns (N, F) into (F, N), `as_images` back.

        `wants` says whether dweight and dbias are wanted (frozen ones are not). You may leave it alone: here they are.
    """,
    source="scratchnet.layers.linear",
    given=("linear_forward",),
    todo="linear_backward",
    returns=("x", "weight", "bias"),
    run=_linear_run,
    cases=linear_cases,
    reference=linear_reference,
    knows=linear_knows,
    hints=(
        "Write one number of Y as a sum: Y[o, n] = Σ_f W[o, f] · X[f, n] + bias[o]. Which numbers of Y "
        "does X[f, n] move, and by how much each? It gets the sum of (that much · dY there). Ask the same "
        "of W[o, f] and bias[o].",
        "In matrices these three sums are:\n[[LIN.2]]\n[[LIN.3]]\n[[LIN.4]]",
        "With grad = as_matrix(dy), (O, N), the products are grad @ columns.T and weight.T @ grad, and "
        "the sum goes over axis 1. dx has to be turned back by as_images. Return dx, dweight, dbias.",
    ),
)


def _relu6_cases(rng):
    def draw(*shape):
        low = rng.choice([-3.0, 0.0, 6.0], shape)
        return low + rng.uniform(0.05, 2.9, shape)

    kinks = draw(3, 4, 2, 5)
    kinks[0] = rng.choice([0.0, 6.0], (4, 2, 5))
    return [
        Case(PLAIN, {"x": draw(3, 4, 5, 2)}),
        Case("(N, features)", {"x": draw(6, 5)}),
        Case("numbers that are exactly 0 or 6", {"x": kinks}, smooth=False),
    ]


def _relu6_knows(dy, arrays, options):
    (x,) = arrays
    y = np.clip(x, 0, 6)
    wrongs = [
        (
            "dy comes through everywhere: forward held some numbers at a bound, where y is exactly 0 or 6; those do not "
            "move, and the mask has to leave them out.",
            dy,
        ),
        ("it is the mask alone: dy has to be multiplied by it.", 1.0 * ((x > 0) & (x < 6))),
        ("dy is multiplied by y: the slope of y is 1 or 0, not y.", dy * y),
        ("dy goes through forward itself: the mask comes from x (or y), not from dy.", np.clip(dy, 0, 6)),
        ("the mask is the wrong way round.", dy * ~((x > 0) & (x < 6))),
    ]
    regions = [("x is exactly 0", x == 0), ("x is exactly 6", x == 6), ("x is exactly 0 or 6", (x == 0) | (x == 6))]
    regions += [
        ("x is above 6", x > 6),
        ("x is below 0", x < 0),
        ("x is 6 or more", x >= 6),
        ("x is 0 or less", x <= 0),
    ]
    return {"x": Knows(wrongs=wrongs, regions=regions)}


RELU6 = Exercise(
    name="relu6",
    teaches="a mask: the gradient passes where the number did, and what happens at a kink",
    chapter="03-activation",
    problem="""
        the backward of a rectifier with two bounds.

            y = min(max(x, 0), 6)       each number of x, of any shape, by itself

        Backward gets dy and hands back dx, of the same shape. The cache is y alone, since y tells where x was between
        the bounds. At the kinks, where x is exactly 0 or 6, the library's gradient is 0, as PyTorch's.
    """,
    source="scratchnet.layers.activation",
    given=("relu6_forward", "clip"),
    todo="relu6_backward",
    returns=("x",),
    run=pair("relu6"),
    cases=_relu6_cases,
    reference=lambda dy, arrays, options: (reference.relu6_backward(dy, *arrays),),
    knows=_relu6_knows,
    hints=(
        "Move x by a little. Between the bounds y moves as much; at a bound it does not move at all. So "
        "some numbers of dy come through as they are, and the others not at all.",
        "In a formula:\n[[RELU6.2]]\nand y is 0 where x was 0 or less, 6 where x was 6 or more.",
        "A mask of booleans multiplies: grad * mask, with grad = as_matrix(dy), y = as_matrix(cache), and "
        "mask True where 0 < y < 6, written as (y > 0) & (y < 6). as_images(…, dy) turns the rows back. "
        "(The library asks for the opposite, not at a bound, so that NaN stays visible; here both pass.)",
    ),
)


def _cross_entropy_cases(rng):
    def case(label, n, classes, smoothing):
        labels = rng.permutation(np.arange(n) % classes)
        arrays = {"logits": rng.standard_normal((n, classes)) * 2}
        return Case(label, arrays, (labels, smoothing), {"N": n, "K": classes})

    return [
        case(PLAIN, 4, 3, 0.0),
        case("label smoothing 0.1", 5, 7, 0.1),
        case("one picture", 1, 3, 0.0),
        Case(
            "large logits",
            {"logits": np.array([[800.0, -900.0, 2.0], [1.0, 2.0, 3.0]])},
            (np.array([1, 0]), 0.0),
            {"N": 2, "K": 3},
            smooth=False,
        ),
    ]


def _cross_entropy_knows(dloss, arrays, options):
    (logits,), (labels, smoothing) = arrays, options
    n, classes = logits.shape
    log_p = log_softmax(as_matrix(logits)).T
    p, hot = np.exp(log_p), np.eye(classes)[labels]
    target = (1 - smoothing) * hot + smoothing / classes
    scale = dloss / n
    wrongs = [
        ("dloss is forgotten: what comes in from above multiplies everything.", (p - target) / n),
        ("dloss is forgotten, and the division by N: the loss is a mean over pictures.", p - target),
        ("log p is taken where p belongs: exp undoes the logarithm.", (log_p - target) * scale),
        ("the label is taken without its smoothing: the target t is in the cache.", (p - hot) * scale),
        (
            "the derivative of -Σ t log p by p, -t/p: but the logits are asked for, so softmax has to be undone too.",
            -target / p * scale,
        ),
    ]
    terms = [("the part of the probabilities p", p * scale), ("the part of the target t", -target * scale)]
    return {"logits": Knows(terms, [("dloss", np.array(dloss))], wrongs, axes=("picture", "class"))}


CROSS_ENTROPY = Exercise(
    name="cross_entropy",
    teaches="a loss: softmax and logarithm together, and the mean over the batch",
    chapter="04-loss",
    problem="""
        the backward of softmax and cross entropy, as one.

            loss = -Σₖ tₖ log pₖ, averaged over the N pictures,     p = softmax(logits)

        The target t is the right class, smoothed by ε. Backward gets dloss, one number (1 where the loss is what is
        minimised, another where it is a part of something), and hands back dlogits (N, K). The cache has log p and t,
        each (K, N), one column a picture, and the number of pictures.
    """,
    source="scratchnet.layers.loss",
    given=("cross_entropy_forward", "log_softmax"),
    todo="cross_entropy_backward",
    returns=("logits",),
    run=pair("cross_entropy"),
    cases=_cross_entropy_cases,
    reference=lambda dy, arrays, options: (dy * reference.cross_entropy_backward(*arrays, *options),),
    knows=_cross_entropy_knows,
    hints=(
        "Do not differentiate by p and then p by the logits: log pₖ = zₖ - log Σⱼ exp(zⱼ) is easier. By "
        "how much does log pₖ grow with zⱼ? With k = j there is a 1 more. Then use that t sums to 1.",
        "That is ∂ log pₖ/∂zⱼ = [k = j] - pⱼ, and so\n[[CE.4]]\nall times dloss.",
        "The library works on (K, N): (xp.exp(log_p) - target), times dloss / n. as_images turns that "
        "into (N, K). xp is get_array_module(log_p), NumPy here.",
    ),
)
