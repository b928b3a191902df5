"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no state to keep to its rates.

Each takes the step t = 0 … total - 1, the number of steps `total` and the largest rate lr, and returns the rate of
that step as a Python float (a NumPy scalar would turn a float32 update into float64).

    constant       η = lr
    cosine         η = lr · (t + 1) / (warmup + 1)                     while t < warmup          (COSINE.1)
                   η = final + ½ (lr - final) (1 + cos π τ)            then                      (COSINE.2)
                   with τ = (t - warmup) / (total - warmup): Loshchilov and Hutter 2017, equation 5, without restarts.
                   The warm-up's straight line reaches lr at t = warmup, where the cosine starts. `final` would be
                   reached at t = total, one step after the last, so that no step is spent at a rate of 0.
    one-cycle      η goes from lr / start_div to lr while t ≤ peak     along half a cosine       (CYCLE.1)
                   η goes from lr to lr / (start_div · final_div)      along half a cosine       (CYCLE.2)
                   with peak = warmup_fraction · total - 1, as PyTorch's OneCycleLR counts it; the last step has the
                   final rate. Smith and Topin 2018, section 3; the two cosines are PyTorch's.
    multi-step     η = lr · gammaᵏ, where k of the milestones are ≤ t  He et al. 2016, section 4.2   (MULTI.1)

Every error is a ValueError of one sentence.
"""

import math
from collections.abc import Callable, Sequence


def constant(step: int, total: int, lr: float) -> float:
    """The same rate in every step."""
    _check("constant", step, total, lr=lr)
    return float(lr)


def cosine(step: int, total: int, lr: float, warmup: int = 0, final: float = 0.0) -> float:
    """A straight warm-up over `warmup` steps (0 ≤ warmup < total), then half a cosine down towards `final` (≤ lr)."""
    _check("cosine", step, total, lr=lr, final=final)
    if not 0 <= warmup < total or warmup % 1:
        raise ValueError(f"schedule cosine: warmup must be whole and in [0, total = {total}), got {warmup}")
    if final > lr:
        raise ValueError(f"schedule cosine: final must be at most lr = {lr}, got {final}")
    if step < warmup:
        return float(lr * (step + 1) / (warmup + 1))  # (COSINE.1)
    return _half_cosine(lr, final, (step - warmup) / (total - warmup))  # (COSINE.2)


def one_cycle(
    step: int,
    total: int,
    lr: float,
    warmup_fraction: float = 0.3,
    start_div: float = 25.0,
    final_div: float = 1e4,
) -> float:
    """Up from lr / start_div to lr in the first `warmup_fraction` of the steps, then down to start / final_div.

    Args:
        step, total: the step and the number of steps.
        lr: the rate at the peak.
        warmup_fraction: in [0, 1], of total.
        start_div, final_div: at least 1; defaults are those of PyTorch's OneCycleLR.
    """
    _check("one-cycle", step, total, lr=lr)
    if not 0 <= warmup_fraction <= 1:
        raise ValueError(f"schedule one-cycle: warmup_fraction must be in [0, 1], got {warmup_fraction}")
    if not (1 <= start_div < math.inf and 1 <= final_div < math.inf):
        raise ValueError(
            f"schedule one-cycle: start_div and final_div must be at least 1, got {start_div}, {final_div}"
        )
    start, peak = lr / start_div, warmup_fraction * total - 1
    if step <= peak + 1e-9:  # 0.29 · 100 - 1 is 28 but for rounding
        return _half_cosine(start, lr, min(step / peak, 1.0) if peak else 1.0)  # (CYCLE.1)
    return _half_cosine(lr, start / final_div, (step - peak) / (total - 1 - peak))  # (CYCLE.2)


def multi_step(
    step: int, total: int, lr: float, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1
) -> float:
    """The rate times `gamma` at each milestone, which is a fraction in [0, 1] of total, rounded down to a step."""
    _check("multi-step", step, total, lr=lr, gamma=gamma)
    if not all(0 <= milestone <= 1 for milestone in milestones):
        raise ValueError(f"schedule multi-step: milestones must be fractions in [0, 1] of the run, got {milestones}")
    # 0.29 · 100 is 28.999… in binary; the small addend makes it the 29 that was meant.
    passed = sum(math.floor(milestone * total + 1e-9) <= step for milestone in milestones)
    return float(lr * gamma**passed)  # (MULTI.1)


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "cosine": cosine,
    "one-cycle": one_cycle,
    "multi-step": multi_step,
}


def _half_cosine(start: float, end: float, share: float) -> float:
    """From `start` at share 0 to `end` at share 1, flat at both."""
    return float(end + (start - end) * (1 + math.cos(math.pi * share)) / 2)


def _check(name: str, step: int, total: int, **rates: float) -> None:
    if total < 1:
        raise ValueError(f"schedule {name}: total must be at least 1 step, got {total}")
    if not 0 <= step < total:
        raise ValueError(f"schedule {name}: step must be in [0, total = {total}), got {step}")
    if step % 1 or total % 1:
        raise ValueError(f"schedule {name}: step and total must be whole numbers, got {step} and {total}")
    for what, value in rates.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"schedule {name}: {what} must be at least 0 and finite, got {value}")
