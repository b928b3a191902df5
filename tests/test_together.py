"""What a chain puts off to its end on a GPU, on the stand-in: one launch, and then all is as if done at once."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from device import halved, on_the_host
from hostmodule import has_compiler
from strategies import in_layout

import scratchnet as sn
from models import MobileNetV2
from scratchnet import together
from scratchnet.array import to_device
from scratchnet.kernels.cuda import many, rows
from scratchnet.layers.norm import TRACK
from scratchnet.parameter import add_gradients
from scratchnet.training.optim import SGD
from scratchnet.training.trainer import train_step

pytestmark = [
    pytest.mark.skipif(not has_compiler(), reason="g++ is not installed"),
    pytest.mark.usefixtures("standin"),
]


def conv(*sizes, kind=sn.Conv2d, **options):
    return kind(*sizes, bias=False, rng=np.random.default_rng(sizes), **options)


def pictures(n=4, channels=3, size=6, stored=False):
    x = np.random.default_rng(5).standard_normal((n, channels, size, size)).astype(np.float32)
    return to_device(halved(x) if stored else in_layout(x, "channel-major"), "cuda")


def gradients(model):
    return {name: p.grad.get() for name, p in model.named_parameters()}


# Sums -------------------------------------------------------------------------------------------------------------------


def pairs(standin, count):
    rng = np.random.default_rng(0)
    sizes = [((300, 2), (7,), (3, 1, 3, 3), (1,), (500,))[k % 5] for k in range(count)]
    return [[standin.asarray(rng.standard_normal(size)) for size in sizes] for _ in range(2)]


@pytest.mark.parametrize("count", [1, 5, 192, 193])
def test_gradients_are_added_in_as_few_launches_as_a_table_allows(standin, count):
    totals, terms = pairs(standin, count)
    want, before = [a.get() + b.get() for a, b in zip(totals, terms, strict=True)], [term.get() for term in terms]
    parameters = [SimpleNamespace(grad=total, requires_grad=True) for total in totals]
    standin.counts.clear()
    add_gradients([*parameters, None], [*terms, None])
    assert +standin.counts == {"launch": 1 + (count > 192)}
    for kept, total, expected in zip(parameters, totals, want, strict=True):
        assert kept.grad is total and (total.get() == expected).all()
    assert all((term.get() == value).all() for term, value in zip(terms, before, strict=True))


def test_gradients_in_another_order_or_dtype_are_added_one_by_one(standin):
    total, term = standin.asarray(np.ones((2, 3))), standin.asarray(np.arange(6.0).reshape(3, 2)).T
    narrow = standin.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    many.add_to_all([(total, term), (total, narrow), (total, total.copy())])
    assert (total.get() == 2 + np.arange(6).reshape(3, 2).T + np.arange(6).reshape(2, 3)).all()


def test_what_is_added_twice_to_one_array_is_added_twice(standin):
    total, other = standin.asarray(np.ones(5)), standin.asarray(np.ones(3))
    once, twice = (standin.asarray(np.full(5, value)) for value in (10.0, 100.0))
    ten = once[:3]
    standin.counts.clear()
    many.add_to_all([(total, once), (other, ten), (total, twice)])
    assert +standin.counts == {"launch": 2}
    assert total.get().tolist() == [111] * 5 and other.get().tolist() == [11] * 3


# A chain ----------------------------------------------------------------------------------------------------------------


def chain(middle):
    norm = sn.BatchNorm2d
    return sn.Sequential(conv(3, 4, 3, padding=1), norm(4), sn.ReLU6(), middle, norm(4), sn.ReLU6()).to("cuda")


class Looks(sn.Conv2d):
    """A layer of someone else's, which wants its gradient halved and looks at it at once."""

    def backward(self, dy):
        before = self.weight.grad.copy()
        dx = super().backward(dy)
        self.weight.grad[...] = before + (self.weight.grad - before) / 2
        return dx


class Normed(sn.BatchNorm2d):
    """It looks at its running mean at once."""

    seen: object = None

    def forward(self, x):
        y = super().forward(x)
        self.seen = self.running_mean.get()
        return y


def test_a_chain_adds_and_tracks_once(standin):
    model, x = chain(conv(4, 4, 1)), pictures()
    model.backward(model(x))  # compiles
    before = gradients(model), model[1].running_mean.get()
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many, "launch_rows", lambda name, rows: calls.append((name, len(rows))))
        y = model(x)
        assert calls == [("track_all", 2)]
        model.backward(y)
    assert calls == [("track_all", 2), ("add_to_all", 6)]
    assert (model[1].running_mean.get() == before[1]).all()  # nobody did it
    y = model(x)
    assert (model[1].running_mean.get() != before[1]).all()
    model.backward(y)
    for name, value in gradients(model).items():
        np.testing.assert_allclose(value, 2 * before[0][name], rtol=1e-5, atol=1e-6)


def test_a_layer_of_someone_elses_may_look_at_its_gradient_at_once():
    want, got = chain(conv(4, 4, 1)), chain(conv(4, 4, 1, kind=Looks))
    for model in (want, got):
        model.backward(model(pictures()))
    want, got = gradients(want), gradients(got)
    for name, value in want.items():
        value = value / 2 if name == "3.weight" else value
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=name)


def test_a_layer_of_someone_elses_may_look_at_its_statistics_at_once():
    model = sn.Sequential(conv(3, 4, 1), Normed(4), sn.ReLU6()).to("cuda")
    model(pictures())
    assert (model[1].seen == model[1].running_mean.get()).all() and model[1].seen.any()


def test_a_layer_by_itself_puts_nothing_off():
    model, x = chain(conv(4, 4, 1)), pictures()
    y = model[1](model[0](x))
    assert model[1].running_mean.get().any()
    dx = model[1].backward(y)
    assert model[1].bias.grad.get().any()
    model[0].backward(dx)
    assert model[0].weight.grad.get().any()


def test_a_parameter_of_two_layers_gets_both_gradients():
    tied = sn.Sequential(conv(3, 3, 1), sn.ReLU6(), conv(3, 3, 1))
    tied[2].weight = tied[0].weight
    alone = sn.Sequential(conv(3, 3, 1), sn.ReLU6(), conv(3, 3, 1))
    alone[2].weight.data[...] = alone[0].weight.data
    for model in (tied.to("cuda"), alone.to("cuda")):
        model.backward(model(pictures()))
    found = gradients(alone)
    both = found["0.weight"] + found["2.weight"]
    np.testing.assert_allclose(tied[0].weight.grad.get(), both, rtol=1e-6)


def test_a_walk_that_fails_leaves_nothing_for_the_next():
    class Fails(sn.Module):
        wanted = True

        def forward(self, x):
            return x

        def backward(self, dy):
            if self.wanted:
                raise ArithmeticError("on purpose")
            return dy

    model = sn.Sequential(conv(3, 4, 1), Fails(), sn.BatchNorm2d(4)).to("cuda")
    for _ in range(2):
        y = model(pictures())
        with pytest.raises(ArithmeticError, match="on purpose"):
            model.backward(y)
    model.zero_grad()
    model[1].wanted = False
    model.backward(model(pictures()))
    want = gradients(model)
    model.zero_grad()
    model.backward(model(pictures()))
    assert all((value == want[name]).all() for name, value in gradients(model).items())


def test_without_kernels_it_is_done_at_the_end_as_well():
    found = []
    for allowed in (True, False):
        with sn.use_kernels(allowed):
            model = chain(conv(4, 4, 1))
            model.backward(model(pictures()))
            found.append(gradients(model) | {"mean": model[1].running_mean.get()})
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-4, atol=1e-5)


# Weights in bfloat16 ----------------------------------------------------------------------------------------------------


class Turned(sn.Conv2d):
    """A layer of someone else's, which makes its weight in every forward."""

    def forward(self, x):
        self.weight.data[...] = self.weight.data[::-1].copy()  # batch norm would hide a factor
        return super().forward(x)


def test_weights_are_rounded_in_one_launch(standin, monkeypatch):
    pytest.importorskip("ml_dtypes")
    model, x, narrowed, rounded = chain(conv(4, 4, 1)), pictures(stored=True), [], []
    original, narrow = many.launch_rows, rows.narrow
    monkeypatch.setattr(many, "launch_rows", lambda name, r: (rounded.append((name, len(r))), original(name, r)))
    monkeypatch.setattr(rows, "narrow", lambda w: (narrowed.append(w.shape), narrow(w))[1])
    model.backward(model(x))
    assert [what for what in rounded if what[0] == "narrow_all"] == [("narrow_all", 2)]
    assert not narrowed  # no weight by itself
    model[3](model[2](model[1](model[0](x))))
    assert len(narrowed) == 2  # layers by themselves round for themselves


@pytest.mark.parametrize("kind", [sn.Conv2d, Turned])
def test_rounded_weights_are_those_of_the_step(kind):
    """After a weight has changed, between steps or in a layer's own forward, the old ones are not used."""
    pytest.importorskip("ml_dtypes")
    model, alone = (chain(conv(4, 4, 1, kind=kind)) for _ in range(2))
    for _ in range(2):
        for each in (model, alone):
            each[0].weight.data[...] = each[0].weight.data[::-1].copy()
        y = z = pictures(stored=True)
        y = model(y)
        for layer in alone:
            z = layer(z)
        assert y.get().tobytes() == z.get().tobytes()


@contextmanager
def every_layer_at_once(monkeypatch):
    """As it was without a table."""

    @contextmanager
    def nothing(kind, rounded):
        yield

    with monkeypatch.context() as patch:
        patch.setattr(together, "walking", nothing)
        yield


@pytest.mark.parametrize("stored", [False, True], ids=["float32", "bfloat16"])
def test_steps_have_the_bits_that_they_have_at_once(gemm, standin, monkeypatch, stored):
    if stored:
        pytest.importorskip("ml_dtypes")

    def train():
        model = MobileNetV2(5, 0.1, "cifar", dropout=0.0, rng=np.random.default_rng(3)).to("cuda")
        optimizer, criterion = SGD(model.named_parameters(), lr=0.05, momentum=0.9), sn.CrossEntropyLoss(0.1)
        for _ in range(2):
            standin.counts.clear()
            train_step(model, criterion, optimizer, pictures(size=8, stored=stored), to_device(np.arange(4), "cuda"))
        return on_the_host(model.state_dict()), standin.counts["launch"]

    got, launches = train()
    with every_layer_at_once(monkeypatch):
        want, before = train()
    assert all(got[name].tobytes() == want[name].tobytes() for name in want)
    assert before - launches == 87 + 36 * stored  # sums of gradients, statistics; weights rounded


def test_the_pair_that_is_put_off_is_in_the_table_of_kernels():
    assert sn.kernels.choose(TRACK, sn.device.Kind("cuda", "float32")).version == "cuda"
