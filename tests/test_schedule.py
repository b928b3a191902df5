"""Schedules: pure functions of the step, PyTorch's numbers, and the shapes that their names promise."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scratchnet.training.schedule import SCHEDULES, constant, cosine, multi_step, one_cycle

TOTALS = st.integers(1, 200)
RATES = st.floats(1e-6, 10)
FRACTIONS = st.floats(0, 1)


def curve(schedule, total, lr, **options):
    return [schedule(step, total, lr, **options) for step in range(total)]


def pytorch_curve(make, total, lr):
    """The rates that a PyTorch scheduler sets, step by step."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions warn about a call that their own SequentialLR makes
        scheduler = make(torch.optim.lr_scheduler, optimizer)
        for step in range(total):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if step < total - 1:
                scheduler.step()
    return rates


@settings(deadline=None)
@given(st.sampled_from(sorted(SCHEDULES)), TOTALS, RATES)
def test_rates_are_python_floats_between_zero_and_lr_and_depend_on_the_step_only(name, total, lr):
    rates = curve(SCHEDULES[name], total, np.float64(lr))
    assert all(type(rate) is float and 0 <= rate <= lr * (1 + 1e-12) for rate in rates)
    assert rates[::-1] == [SCHEDULES[name](step, total, lr) for step in reversed(range(total))]


@given(TOTALS, RATES)
def test_constant_is_constant(total, lr):
    assert set(curve(constant, total, lr)) == {lr}


@settings(deadline=None)
@given(TOTALS, RATES, st.integers(0, 199), FRACTIONS)
def test_cosine_rises_in_a_line_meets_its_peak_after_the_warm_up_and_falls(total, lr, warmup, share):
    assume(warmup < total)
    rates = curve(cosine, total, lr, warmup=warmup, final=share * lr)
    assert rates[warmup] == pytest.approx(lr), "the cosine starts at lr"
    rise = np.diff(rates[: warmup + 1])
    np.testing.assert_allclose(rise, lr / (warmup + 1), rtol=1e-6)  # one straight line up to the cosine's start
    assert rates[0] > 0, "no step is spent at 0"
    assert (np.diff(rates[warmup:]) <= 1e-12 * lr).all()
    assert rates[-1] >= share * lr * (1 - 1e-12)


@settings(deadline=None)
@given(TOTALS, RATES, FRACTIONS, st.integers(0, 199))
def test_cosine_would_reach_its_final_rate_one_step_after_the_last(total, lr, share, warmup):
    assume(warmup < total)
    final = share * lr
    above = (lr - final) * math.sin(math.pi / (2 * (total - warmup))) ** 2  # ½ (1 + cos(π - x)) = sin² ½x
    last = cosine(total - 1, total, lr, warmup=warmup, final=final)
    assert last == pytest.approx(final + above, rel=1e-9, abs=1e-12 * lr)


def test_cosine_is_half_way_down_in_the_middle_of_what_the_warm_up_leaves():
    assert cosine(12, 20, 1.0, warmup=4, final=0.2) == pytest.approx(0.6)


def test_cosine_ends_at_0_unless_told_otherwise_and_may_end_where_it_began():
    assert curve(cosine, 4, 0.2) == curve(cosine, 4, 0.2, warmup=0, final=0.0)
    assert curve(cosine, 4, 0.2, final=0.2) == pytest.approx([0.2] * 4)


@settings(deadline=None)
@given(st.integers(2, 200), RATES, FRACTIONS)
def test_one_cycle_rises_falls_and_ends_at_its_final_rate(total, lr, fraction):
    rates = curve(one_cycle, total, lr, warmup_fraction=fraction, start_div=20.0, final_div=50.0)
    peak = math.floor(fraction * total - 1 + 1e-9)
    tolerance = 1e-12 * lr
    assert (np.diff(rates[: max(peak, 0) + 1]) >= -tolerance).all()
    assert (np.diff(rates[max(peak, 0) + 1 :]) <= tolerance).all()
    if fraction * total < total - 1e-6:
        assert rates[-1] == pytest.approx(lr / 1000)
    if peak > 0:
        assert rates[0] == pytest.approx(lr / 20)


@settings(deadline=None)
@given(st.integers(2, 60), RATES, FRACTIONS, st.floats(1, 100), st.floats(1, 1e5))
def test_one_cycle_is_two_half_waves(total, lr, fraction, start_div, final_div):
    """With sin² ½πs, which rises from 0 to 1 as s does, in place of the cosine."""
    peak, low, last = fraction * total - 1, lr / start_div, lr / start_div / final_div
    assume(abs(peak) > 1e-6)
    for step in range(total):
        if step <= peak + 1e-9:
            want = low + (lr - low) * math.sin(math.pi / 2 * step / peak) ** 2
        else:
            want = lr - (lr - last) * math.sin(math.pi / 2 * (step - peak) / (total - 1 - peak)) ** 2
        rate = one_cycle(step, total, lr, warmup_fraction=fraction, start_div=start_div, final_div=final_div)
        assert rate == pytest.approx(want, rel=1e-9, abs=1e-12 * lr)


def test_one_cycle_by_default_rises_from_a_25th_for_0_3_of_the_run_and_ends_10000_times_lower():
    rates = curve(one_cycle, 10, 1.0)
    assert rates[0] == pytest.approx(1 / 25) and rates[2] == 1.0 and rates[-1] == pytest.approx(1 / 25 / 1e4)


def test_options_at_the_ends_of_their_ranges_are_taken():
    assert curve(one_cycle, 4, 0.5, start_div=1, final_div=1) == [0.5] * 4
    assert one_cycle(3, 4, 0.5, warmup_fraction=1) == 0.5  # nothing but the rise
    assert one_cycle(0, 4, 0.5, warmup_fraction=0) < 0.5  # the fall began one step before the first
    assert curve(multi_step, 4, 1.0, milestones=(0, 1), gamma=0.5) == [0.5] * 4


def test_one_cycle_holds_lr_at_its_peak():
    assert one_cycle(2, 10, 0.4, warmup_fraction=0.3) == 0.4
    assert max(curve(one_cycle, 10, 0.4, warmup_fraction=0.3)) == 0.4


def test_multi_step_drops_at_fractions_of_the_run():
    rates = curve(multi_step, 8, 1.0, milestones=(0.5, 0.75), gamma=0.1)
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert curve(multi_step, 5, 1.0, milestones=(0.5,), gamma=0.5) == [1, 1, 0.5, 0.5, 0.5]  # 2.5 down to step 2


@given(st.integers(1, 100), st.integers(1, 100))
def test_multi_step_milestones_written_in_percent_fall_on_the_step_that_was_meant(percent, hundreds):
    total = 100 * hundreds
    drop = percent * hundreds  # 0.29 · 100 is 28.999… in binary
    before = multi_step(drop - 1, total, 1.0, milestones=(percent / 100,))
    assert before == 1.0
    if drop < total:
        assert multi_step(drop, total, 1.0, milestones=(percent / 100,)) == 0.1


@pytest.mark.parametrize("total", [2, 3, 7, 10, 100, 333])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.3, 0.45, 0.9, 1.0])  # PyTorch divides by 0 where their product is 1
def test_one_cycle_equals_pytorch_step_by_step(total, fraction):
    theirs = pytorch_curve(
        lambda module, optimizer: module.OneCycleLR(
            optimizer, 0.4, total, pct_start=fraction, cycle_momentum=False, div_factor=10.0, final_div_factor=100.0
        ),
        total,
        0.4,
    )
    ours = curve(one_cycle, total, 0.4, warmup_fraction=fraction, start_div=10.0, final_div=100.0)
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_one_cycle_has_pytorchs_defaults():
    theirs = pytorch_curve(
        lambda module, optimizer: module.OneCycleLR(optimizer, 0.4, 50, cycle_momentum=False), 50, 0.4
    )
    assert curve(one_cycle, 50, 0.4) == pytest.approx(theirs, rel=1e-12)


def test_one_cycle_with_a_warm_up_of_a_single_step_starts_at_its_peak():
    assert one_cycle(0, 10, 0.4, warmup_fraction=0.1) == 0.4


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("total", [5, 20])
def test_cosine_equals_pytorch_step_by_step(total, warmup):
    def make(module, optimizer):
        falling = module.CosineAnnealingLR(optimizer, T_max=total - warmup, eta_min=0.02)
        if not warmup:
            return falling
        rising = module.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        return module.SequentialLR(optimizer, [rising, falling], milestones=[warmup])

    assert curve(cosine, total, 0.4, warmup=warmup, final=0.02) == pytest.approx(pytorch_curve(make, total, 0.4))


def test_multi_step_equals_pytorch_step_by_step():
    theirs = pytorch_curve(lambda module, optimizer: module.MultiStepLR(optimizer, [10, 15], gamma=0.3), 20, 0.4)
    assert curve(multi_step, 20, 0.4, gamma=0.3) == pytest.approx(theirs, rel=1e-12)


BAD = [
    (lambda f: f(-1, 10, 0.1), "step must be in .*got -1"),
    (lambda f: f(10, 10, 0.1), r"step must be in \[0, total = 10\), got 10"),
    (lambda f: f(2.5, 10, 0.1), "whole numbers, got 2.5"),
    (lambda f: f(0, 0, 0.1), "total must be at least 1 step, got 0"),
    (lambda f: f(0, 10, -0.1), "lr must be at least 0 and finite, got -0.1"),
    (lambda f: f(0, 10, math.nan), "lr must be at least 0 and finite, got nan"),
    (lambda f: f(0, 10, math.inf), "lr must be at least 0 and finite, got inf"),
    (lambda f: f(math.nan, 10, 0.1), "step must be in .*got nan"),
]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("call", "message"), BAD)
def test_every_schedule_refuses_bad_steps_and_rates_by_its_name(name, call, message):
    with pytest.raises(ValueError, match=f"schedule {name}: .*{message}"):
        call(SCHEDULES[name])


BAD_OPTIONS = [
    (cosine, dict(warmup=10), r"warmup must be whole and in \[0, total = 10\), got 10"),
    (cosine, dict(warmup=-1), "warmup must be .*got -1"),
    (cosine, dict(warmup=1.5), "warmup must be whole .*got 1.5"),
    (cosine, dict(final=0.2), "final must be at most lr = 0.1, got 0.2"),
    (cosine, dict(final=-0.2), "final must be at least 0"),
    (one_cycle, dict(warmup_fraction=1.1), r"warmup_fraction must be in \[0, 1\], got 1.1"),
    (one_cycle, dict(warmup_fraction=math.nan), "warmup_fraction must be"),
    (one_cycle, dict(start_div=0.5), "start_div and final_div must be at least 1, got 0.5"),
    (one_cycle, dict(final_div=0.0), "start_div and final_div must be at least 1, got 25.0, 0.0"),
    (one_cycle, dict(start_div=math.inf), "start_div and final_div must be at least 1, got inf"),
    (one_cycle, dict(final_div=math.inf), "start_div and final_div must be at least 1, got 25.0, inf"),
    (multi_step, dict(milestones=(0.5, 1.5)), r"milestones must be fractions in \[0, 1\]"),
    (multi_step, dict(gamma=-1), "gamma must be at least 0"),
]


@pytest.mark.parametrize(("schedule", "options", "message"), BAD_OPTIONS)
def test_bad_options_are_refused_in_one_sentence(schedule, options, message):
    with pytest.raises(ValueError, match=message):
        schedule(0, 10, 0.1, **options)
