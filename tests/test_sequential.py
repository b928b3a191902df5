"""Containers: errors that name the layer at any depth, shortcuts, names that clash."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import Scale, picture
from strategies import in_layout, layouts, rngs

import scratchnet as sn


class Shut(sn.Module):
    """A layer that refuses, with an error of one's own choice, forward or backward."""

    def __init__(self, error, when="forward"):
        self.error, self.when = error, when

    def forward(self, x):
        if self.when == "forward":
            raise self.error
        return x

    def backward(self, dy):
        raise self.error


# Errors that locate ---------------------------------------------------------------------------------------------------


def nest(layer, names):
    """The layer inside containers of these names, outermost first; "r:name" makes a Residual."""
    for name in reversed(names):
        kind = sn.Residual if name.startswith("r:") else sn.Sequential
        layer = kind({"before": sn.ReLU(), name.removeprefix("r:"): layer})
    return layer


NAME = st.sampled_from(["a", "b7", "conv", "0", "layer_2"])


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError, sn.DeviceError])
@given(names=st.lists(st.tuples(st.sampled_from(["", "r:"]), NAME).map("".join), min_size=1, max_size=5))
def test_an_error_names_its_layer_at_any_depth(when, error, names):
    original = error("Shut: no")
    net = nest(Shut(original, when), names)
    x = np.ones((2, 3, 4, 5))
    with pytest.raises(error) as caught:
        net(x)
        net.backward(x)
    path = ".".join(name.removeprefix("r:") for name in names)
    assert str(caught.value) == f"{path} Shut: no"
    assert caught.value is original  # with its traceback, and its class


def test_errors_of_another_kind_pass_as_they_are():
    with pytest.raises(KeyError, match="^'missing'$"):
        nest(Shut(KeyError("missing")), ["a", "b"])(picture())


def test_a_shape_that_changes_inside_residual_is_named_where_it_is():
    message = (
        r"^a\.block Residual: the layers turn x of shape \(2, 3, 7, 6\) into \(2, 3, 5, 4\), "
        r"a shortcut needs equal shapes$"
    )
    net = sn.Sequential({"a": sn.Sequential({"block": sn.Residual(sn.Conv2d(3, 3, 3, dtype=np.float64))})})
    with pytest.raises(ValueError, match=message):
        net(picture())
    with pytest.raises(ValueError, match=r"^Residual: the layers turn x of shape \(2, 3, 7, 6\) into \(2, 3, 1, 1\)"):
        sn.Residual(sn.GlobalAvgPool2d())(picture())  # would broadcast, silently


@given(rngs(), layouts(), layouts())
def test_residual_adds_the_shortcut_both_ways(rng, x_layout, dy_layout):
    body, alone = Scale(3), Scale(3)
    x, dy = in_layout(picture(rng), x_layout), in_layout(picture(rng), dy_layout)
    net = sn.Residual(body)
    assert np.array_equal(net(x), x + alone(x))
    assert np.array_equal(net.backward(dy), dy + alone.backward(dy))
    assert np.array_equal(body.gain.grad, alone.gain.grad)


# Names that clash -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "forward",
        "backward",
        "training",
        "saves",
        "name",
        "parameters",
        "buffers",
        "_cache",
        "eval",
        "chain",
        "inside",
        "_plan",
    ],
)
@pytest.mark.parametrize("container", [sn.Sequential, sn.Residual])
def test_a_name_that_every_module_has_is_refused(container, name):
    message = f"^{container.__name__}: '{name}' cannot name a layer, every module has an attribute of that name$"
    with pytest.raises(ValueError, match=message):
        container({"fine": sn.ReLU(), name: sn.ReLU()})


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="^Sequential: expected 1 to be a Module, got function$"):
        sn.Sequential(sn.ReLU(), lambda x: x)
    with pytest.raises(TypeError, match="^Sequential: expected 0 to be a Module, got list$"):
        sn.Sequential([sn.ReLU(), sn.ReLU()])
    with pytest.raises(TypeError, match="^Residual: expected body to be a Module, got type$"):
        sn.Residual({"body": sn.ReLU})


def test_a_dot_in_a_name_is_refused():
    """Its keys would be those of a layer inside another: `a.b` of {"a.b": …} and of {"a": {"b": …}}."""
    with pytest.raises(ValueError, match="^Sequential: 'a.b' cannot name a layer"):
        sn.Sequential({"a.b": Scale(3), "a": sn.Sequential({"b": Scale(3)})})
