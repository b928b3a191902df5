"""A network at inference as one program: the plain layers' numbers on every shape, from whatever weights there are now."""

import copy
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conformance import EPS32
from strategies import in_layout
from test_compiled import needs_numba
from test_folding import random_state

import scratchnet as sn
from models import MobileNetV2
from models.mobilenetv2 import inverted_residual
from scratchnet.fused.program import ProgramStep
from scratchnet.kernels import compiled
from scratchnet.parallel import cuts

pytestmark = needs_numba
ROOT = Path(__file__).parents[1]
if compiled.PRESENT:
    from scratchnet.kernels.compiled import lowering, program


def conv(*args, **options):
    return sn.Conv2d(*args, **options, rng=np.random.default_rng(0))


def depthwise(channels, stride=1):
    return conv(channels, channels, 3, stride=stride, padding=1, groups=channels)


def head(channels):
    rng = np.random.default_rng(0)
    classifier = sn.Dropout(0.5, rng=rng), sn.Linear(channels, 3, rng=rng)
    return sn.GlobalAvgPool2d(), sn.Flatten(), *classifier


NETS = {
    "pointwise": lambda: [conv(3, 5, 1), sn.ReLU6(), conv(5, 9, 1), conv(9, 2, 1, bias=False), sn.ReLU6()],
    "expand": lambda: [conv(3, 18, 1), sn.ReLU6(), depthwise(18), sn.ReLU6(), conv(18, 4, 1)],
    "expand, stride 2": lambda: [conv(3, 11, 1), depthwise(11, 2), sn.ReLU6(), conv(11, 20, 1)],
    "depthwise": lambda: [depthwise(3), sn.ReLU6(), depthwise(3, 2), depthwise(3)],
    "dense": lambda: [
        conv(3, 4, 3, padding=1),
        sn.ReLU6(),
        conv(4, 5, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    ],
    "strided": lambda: [conv(3, 10, 1, stride=2), conv(10, 6, 1, stride=(1, 3)), sn.ReLU6()],
    "shortcuts": lambda: [
        conv(3, 4, 1),
        sn.Residual(conv(4, 12, 1), sn.ReLU6(), depthwise(12), sn.ReLU6(), conv(12, 4, 1)),
        sn.Residual(sn.Residual(conv(4, 4, 3, padding=1)), conv(4, 4, 1)),
    ],
    "head": lambda: [conv(3, 7, 1), sn.ReLU6(), conv(7, 17, 1), *head(17)],
    "flat pixels": lambda: [conv(3, 4, 3, stride=2, padding=1), depthwise(4), sn.Flatten()],
    "block": lambda: [
        conv(3, 8, 1),
        sn.Sequential(inverted_residual(8, 8, 6, 1, False, dtype=np.float32, rng=np.random.default_rng(0))),
        inverted_residual(8, 12, 6, 2, False, dtype=np.float32, rng=np.random.default_rng(0)),
    ],
}  # fmt: skip
SHAPES = [(1, 3, 4, 4), (3, 3, 7, 9), (2, 3, 1, 6), (5, 3, 16, 1), (1, 3, 32, 8), (17, 3, 5, 4), (2, 3, 1, 1)]
each_net = pytest.mark.parametrize("name", NETS)


def network(name, dtype=np.float32, seed=0):
    """One of the networks, folded, with random numbers in it."""
    net = random_state(sn.Sequential(*NETS[name]()), np.random.default_rng(seed)).astype(dtype)
    return sn.fold_batch_norm(net)


def picture(shape, dtype=np.float32, layout="channel-major", seed=1):
    return in_layout(np.random.default_rng(seed).standard_normal(shape).astype(dtype), layout)


def is_program(net):
    return [type(step) for step in net._plan.steps] == [ProgramStep]


def plain(net, x):
    """What the layers compute, in a copy: the network keeps its plan and its programs."""
    twin = copy.deepcopy(net)
    with sn.use_kernels(False):
        return twin(x)


def small_parts(monkeypatch):
    """Every operation in as many parts as it has, a picture at a time, on all threads."""
    monkeypatch.setattr(cuts, "PARALLEL_WORK", 0)
    monkeypatch.setattr(lowering, "PART_WORK", 1)
    monkeypatch.setattr(lowering, "TARGET", 1)


def off(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


@each_net
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_computes_what_the_layers_do(name, shape):
    exact, net = network(name, np.float64), network(name)
    x = picture(shape, np.float64)
    want = plain(exact, x)
    got = exact(x)
    assert is_program(exact) and got.dtype == np.float64 and got.shape == want.shape
    assert off(got, want) <= 1e-12
    small = net(x.astype(np.float32))
    assert is_program(net) and small.dtype == np.float32
    with sn.use_kernels("numpy"):
        numpys = net(x.astype(np.float32))
    assert off(small, want) <= max(8 * EPS32, 2 * off(numpys, want))


@each_net
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_how_it_is_cut_changes_no_bit(name, shape, monkeypatch):
    net, x = network(name), picture(shape)
    whole = net(x).copy()
    small_parts(monkeypatch)
    for threads in (2, 1, 3):
        sn.set_num_threads(threads)
        net._plan = None
        np.testing.assert_array_equal(net(x), whole)
    for k in range(len(x)):
        np.testing.assert_array_equal(net(x[k : k + 1])[0], whole[k])


@each_net
@pytest.mark.parametrize("layout", ["C", "F", "channel-major", "reversed", "sliced"])
def test_x_in_any_memory_order_is_only_read_and_results_are_the_callers(name, layout):
    net, values = network(name), picture((3, 3, 6, 5))
    if layout == "reversed":
        x = np.ascontiguousarray(values[::-1, :, ::-1])[::-1, :, ::-1]
    elif layout == "sliced":
        x = np.repeat(values, 2, axis=3)[..., ::2]
    else:
        x = np.array(values, order=layout) if layout in "CF" else values
    x.flags.writeable = False
    first = net(x)
    kept = first.copy()
    np.testing.assert_array_equal(kept, net(values))
    net(values + 1)
    np.testing.assert_array_equal(first, kept)
    first[...] = 0
    np.testing.assert_array_equal(net(x), kept)


@each_net
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_shows_where_the_layers_show_it(name, bad):
    net = network(name, np.float64)
    x = picture((2, 3, 6, 7), np.float64)
    x[1, 2, 2, 0] = bad
    with np.errstate(all="ignore"):
        got, want = net(x), plain(net, x)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    assert np.isnan(want).any() or not np.isnan(bad)


# Weights and modes as they are now ------------------------------------------------------------------------------------


def test_it_reads_the_weights_that_there_are():
    net, other, x = network("block"), network("block", seed=7), picture((2, 3, 8, 8))
    before = net(x).copy()
    changes = {
        "a number in place": lambda: net[0].weight.data.__setitem__((0, 0), 3.0),
        "another array": lambda: setattr(net[0].weight, "data", net[0].weight.data * 2),
        "a bias": lambda: setattr(net[0].bias, "data", net[0].bias.data + 1),
        "another parameter": lambda: setattr(net[0], "weight", sn.Parameter(net[0].weight.data * 2)),
        "no bias": lambda: setattr(net[0], "bias", None),
        "another layer": lambda: setattr(net, "0", conv(3, 8, 1).eval()),
        "a state": lambda: net.load_state_dict(other.state_dict()),
        "transposed memory": lambda: setattr(net[0].weight, "data", np.asfortranarray(net[0].weight.data * 3)),
    }
    for what, change in changes.items():
        change()
        after = net(x).copy()
        assert not np.array_equal(after, before), what
        np.testing.assert_allclose(after, plain(net, x), rtol=1e-4, atol=1e-4 * np.abs(after).max(), err_msg=what)
        before = after


def test_an_optimizer_s_step_is_seen():
    net, x = network("expand"), picture((2, 3, 8, 8))
    before = net(x).copy()
    for parameter in net.parameters():
        parameter.grad[...] = 1
    sn.SGD(net.parameters(), lr=0.1).step()
    after = net(x)
    assert is_program(net) and not np.array_equal(after, before)
    np.testing.assert_allclose(after, plain(net, x), rtol=0, atol=1e-5 * np.abs(after).max())


def test_a_copy_is_a_network_of_its_own():
    net, x = network("block"), picture((2, 3, 8, 8))
    want = net(x).copy()
    twin = copy.deepcopy(net)
    for parameter in net.parameters():
        parameter.data[...] = 0
    np.testing.assert_array_equal(twin(x), want)
    twin[0].weight.data[...] = 0
    assert not np.array_equal(twin(x), want)


def test_modes_kernels_dtypes_and_sizes_are_noticed():
    net, x = network("head"), picture((2, 3, 8, 8))
    net(x)
    assert is_program(net)
    for which in ("numpy", False):
        with sn.use_kernels(which):
            net(x)
            assert not is_program(net)
    net.eval(save=True)
    dx = net.backward(net(x))
    assert dx.shape == x.shape and not is_program(net)
    net.eval()
    for shape in ((1, 3, 8, 8), (4, 3, 5, 7), (2, 3, 8, 8)):
        x = picture(shape)
        np.testing.assert_allclose(net(x), plain(net, x), rtol=0, atol=1e-4)
    net[-2].training = True  # the dropout
    net(x)
    assert not is_program(net)
    net.eval().astype(np.float64)
    assert net(picture((2, 3, 8, 8), np.float64)).dtype == np.float64 and is_program(net)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 4, 8, 8), np.float32), r"^0 Conv2d: expected 3 input channels, got x of shape \(2, 4, 8, 8\)"),
        (np.ones((2, 3, 8), np.float32), r"^0 Conv2d: expected x of shape \(N, 3, H, W\)"),
        (np.ones((0, 3, 8, 8), np.float32), "^0 Conv2d: x of shape .* is empty"),
        (np.ones((2, 3, 8, 8)), "^0 Conv2d: x is float64 and the parameters are float32"),
        (np.ones((2, 3, 8, 8), int), "^0 Conv2d: expected floating-point x"),
        ([1.0], "^0 Conv2d: expected a NumPy or CuPy array"),
        (np.ones((2, 3, 2, 8), np.float32), "^1.0 Conv2d: the kernel spans 3 pixels along H"),
    ],
)
def test_bad_input_is_refused_by_its_layer(x, message):
    net = sn.Sequential(conv(3, 4, 1), sn.Sequential(conv(4, 4, 3)), conv(4, 2, 1)).eval()
    net(picture((2, 3, 8, 8)))
    assert is_program(net)
    with pytest.raises((ValueError, TypeError), match=message):
        net(x)


def test_a_shortcut_that_does_not_fit_and_a_backward_are_refused():
    net = sn.Sequential(conv(3, 4, 1), sn.Residual(conv(4, 5, 1))).eval()
    with pytest.raises(ValueError, match=r"^1 Residual: the layers turn x of shape \(2, 4, 3, 3\) into \(2, 5, 3, 3\)"):
        net(picture((2, 3, 3, 3)))
    net = network("expand")
    y = net(picture((2, 3, 5, 5)))
    with pytest.raises(RuntimeError, match="^4 Conv2d: nothing saved for backward .the last forward ran in eval mode"):
        net.backward(y)


def test_layers_that_are_none_of_a_programs_stay_steps_between_programs():
    layers = [conv(3, 4, 1), depthwise(4), sn.AvgPool2d(2), conv(4, 6, 1), sn.Residual(conv(6, 6, 1), sn.AvgPool2d(1))]
    layers += [sn.ReLU(), conv(6, 6, 3, groups=2), conv(6, 12, 3, groups=6), conv(12, 3, 1), sn.ReLU6(), conv(3, 2, 1)]
    net, x = sn.Sequential(*layers).eval(), picture((3, 3, 16, 12))
    y = net(x)
    programs = [step.names for step in net._plan.steps if isinstance(step, ProgramStep)]
    assert programs == [("0", "1"), ("8", "9", "10")]
    np.testing.assert_allclose(y, plain(net, x), rtol=0, atol=1e-5)
    lines = [line.split()[-3:] for line in str(sn.plan(net)).splitlines()]
    assert [words[1:] for words in lines if words[0] == "program:"] == [
        ["expand", "compiled"],
        ["product", "compiled"],
    ] + [["product", "compiled"]]


# Threads --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 19])
def test_mobilenet_has_the_same_bits_on_any_number_of_threads_and_in_any_batch(n, monkeypatch):
    monkeypatch.setattr(cuts, "PARALLEL_WORK", 1 << 16)
    net = MobileNetV2(10, 0.25, rng=np.random.default_rng(0)).fold_batch_norm()
    x = picture((n, 3, 32, 32))
    y = net(x).copy()
    for threads in (1, 2, 4):
        sn.set_num_threads(threads)
        np.testing.assert_array_equal(net(x), y)
    np.testing.assert_array_equal(net(x[-1:])[0], y[-1])
    with sn.use_kernels("numpy"):
        np.testing.assert_allclose(y, net(x), rtol=0, atol=32 * EPS32 * np.abs(y).max())


def test_python_s_threads_may_call_it_at_once(monkeypatch):
    monkeypatch.setattr(cuts, "PARALLEL_WORK", 0)
    net, xs = network("block"), [picture((n, 3, 8, 8), seed=n) for n in (1, 2, 9, 1)]
    want = [net(x).copy() for x in xs]
    wrong = []

    def call(k):
        for _ in range(30):
            if not np.array_equal(net(xs[k]), want[k]):
                wrong.append(k)

    callers = [threading.Thread(target=call, args=(k,)) for k in range(len(xs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not wrong and not any(caller.is_alive() for caller in callers)


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_computes_too():
    code = (
        "import os, numpy as np, scratchnet as sn\nfrom models import MobileNetV2\nfrom scratchnet.parallel import cuts\n"
        "cuts.PARALLEL_WORK = 0; sn.set_num_threads(2)\n"
        "net = MobileNetV2(10, 0.25, rng=np.random.default_rng(0)).fold_batch_norm()\n"
        "x = np.ones((1, 3, 32, 32), np.float32); y = net(x).copy(); child = os.fork()\n"
        "same = np.array_equal(net(x), y)\n"
        "if not child: os._exit(0 if same else 1)\n"
        "print(same, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert run(code).split() == ["True", "0"]


def test_a_thread_that_never_comes_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(cuts, "PARALLEL_WORK", 0)
    net, x = network("block"), picture((1, 3, 8, 8))
    want = net(x).copy()
    monkeypatch.setattr(
        program.threads, "parallel", lambda function, items: [function(item) for item in list(items)[:1]]
    )
    np.testing.assert_array_equal(net(x), want)


def test_the_loops_are_python_too():
    """With Numba's own switch they run as what they are: no compiler between the text and the values."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    command += ["-k", "layers_do and (2 or 1) and not 7 or no_number and nan"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout
