"""Where a module is checked: at random parameters, since the initial ones hide mistakes.

A layer y = gain · x + shift starts with gain 1 and shift 0, and there `return dy` is its right backward. So every parameter
and every floating-point buffer of the probe's copy is drawn before the check; a running variance stays positive.
"""

import numpy as np

# (may signs change, how far to go towards the drawn values): a layer may need positive ones, or ones below 1
MOVES = ((True, 1.0), (False, 1.0), (False, 0.01))


def move(probe, rng):
    """Draw the parameters and buffers of the probe's module, of the size that they have, so that y stays finite.

    Where no draw leaves y as finite as it was, the module stays at the values that it has.
    """
    finite = np.isfinite(probe.forward())  # at the values it has: an error here is the module's own
    arrays = [(value, value.copy(), False) for value in probe.parameters().values()]
    arrays += [(value, value.copy(), True) for value in probe.buffers.values() if value.dtype.kind == "f"]
    for signs, way in MOVES:
        for value, start, is_buffer in arrays:
            value[...] = start + way * (_draw(start, rng, signs, is_buffer) - start)
        try:
            with np.errstate(all="ignore"):
                if np.all(np.isfinite(probe.forward()) | ~finite):
                    return
        except (ValueError, ArithmeticError):
            continue  # the module refuses these values
    for value, start, _ in arrays:
        value[...] = start


def _draw(start, rng, signs, is_buffer):
    """Numbers of the size of those in `start`, so that a deep network's activations stay in their range.

    Numbers that are all equal are initial values: they are drawn between 0.6 and 1.25 times their size, since then
    E[gain²] · E[1/variance] = 1 and no activation grows with depth. Others may be trained, and move by up to 10 %. A 0
    becomes of the size of the other numbers; where all are 0, of the size of a bias beside activations of size 1.
    Zeros take either sign if `signs`, and so do equal numbers, but for a buffer's.
    """
    zero, equal = start == 0, np.all(start == start.flat[0])
    fan_in = start.size / len(start) if start.ndim > 1 else 1
    others = np.sqrt(np.mean(start * start)) or 0.3 / np.sqrt(fan_in)
    drawn = np.where(zero, others, start) * rng.uniform(*((0.6, 1.25) if equal else (0.9, 1.1)), start.shape)
    either = (zero | (equal and not is_buffer)) & signs
    return np.where(either, rng.choice([-1, 1], start.shape), 1) * drawn
