"""Φ, the share of a normal distribution below x: GELU is made of it, and NumPy has no error function.

    φ(x) = exp(-x²/2) / √(2π)                                                               (PHI.1)
    Φ(x) = ∫ φ from -∞ to x  =  ½ erfc(-x/√2)

Below 0, at -a, what is left of erfc once its exponential is taken out is smooth and never 0: for z = a/√2 ≥ 0,
    f(z) = (1 + 2z) · exp(z²) · erfc(z)      falls, rises and falls between 1 at z = 0 and 2/√π at ∞
and in t, which goes from -1 to 1 while z goes from 0 to ∞, it is a polynomial of degree 24 to 1 part in 10¹⁷
    t = (z - 3.75) / (z + 3.75),      Φ(-a) = exp(-a²/2) · f(t) / (2 + 4z)                   (PHI.2)
Above 0, by symmetry
    Φ(a) = 1 - Φ(-a)                                                                        (PHI.3)

So Φ keeps its digits in both tails: Φ(-20) is 2.75e-89, where ½ (1 + erf(x/√2)) has long become 0. And a polynomial takes
complex numbers: under a complex step it gives the derivative of what forward computes. (Continuing Φ by Φ(x) + ih·φ(x)
would also be right, but then the gradient check would hold backward's φ against itself.)
Source of f, t and 3.75: Shepherd and Laframboise 1981, "Chebyshev approximation of (1 + 2x) exp(x²) erfc x in 0 ≤ x < ∞".
COEFFICIENTS are f's Chebyshev series in t, computed with 50 digits, cut off behind T₂₄ and written in powers of t.
"""

import math

from scratchnet.device import get_array_module

COEFFICIENTS = (
    1.2375126308378275, -0.14024059858554697, 0.0035854154854644293, 0.0822767384901452, -0.10880393014174886,
    0.09230432116037748, -0.05869339858963677, 0.028362277418956406, -0.009746579558029276, 0.0017556258528952954,
    0.0002937136655913448, -0.0002901540805408417, 5.164909889268241e-05, 2.238423915508223e-05,
    -1.1444146237700524e-05, -9.73559896736775e-07, 1.751637648849062e-06, -5.7218230603224086e-08,
    -2.5866850716155884e-07, 2.3263508708859124e-08, 3.8675334242222354e-08, -3.744210080962018e-09,
    -5.1739902140113095e-09, 3.1114333809799254e-10, 4.2514714447963895e-10,
)  # fmt: skip
END = 40.0  # exp(-END²/2) is 0 in float64


def magnitude(x):
    """|x|, by the real part where x is complex: a complex step must not turn it."""
    return get_array_module(x).where(x.real < 0, -x, x)


def bell(x):
    """exp(-x²/2) to the last digits, also where x² itself would be rounded by more than 1, or overflow."""
    xp = get_array_module(x)
    x = xp.minimum(magnitude(x), END)
    near = xp.trunc(x.real * 16) / 16  # near² needs no rounding, and what is left of x² is small
    return xp.exp(near * near / -2) * xp.exp((near - x) * (near + x) / 2)


def normal_density(x):
    """φ of every number of x."""
    return bell(x) / math.sqrt(2 * math.pi)  # (PHI.1)


def normal_cdf(x):
    """Φ of every number of x, to 1e-15 of itself in float64 wherever float64 has it."""
    xp = get_array_module(x)
    z = xp.minimum(magnitude(x), END) / math.sqrt(2)
    t = (z - 3.75) / (z + 3.75)
    f = xp.full_like(t, COEFFICIENTS[-1])
    for coefficient in COEFFICIENTS[-2::-1]:  # Horner's scheme
        f *= t
        f += coefficient
    tail = bell(x) * f / (2 + 4 * z)  # (PHI.2)
    return xp.where(x.real < 0, tail, 1 - tail)  # (PHI.3)
