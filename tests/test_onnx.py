"""ONNX files: what is written is what onnxruntime computes, and what is read is what the official node tests say."""

import numpy as np
import pytest
from snippets import block_with
from strategies import normal

import scratchnet as sn
from models import MobileNetV2
from scratchnet.onnx import Graph, Node, export, load
from scratchnet.quantized import IntegerNetwork, quantize

onnx = pytest.importorskip("onnx", reason="needs the package onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from scratchnet.onnx import __main__, operators, reader  # noqa: E402

RTOL = 1e-5  # of the largest number, float32


def drawn(net, seed=0):
    """The network with every parameter and statistic drawn, in eval mode."""
    rng = np.random.default_rng(seed)
    for name, value in net.state_dict().items():
        if "tracked" not in name:
            value[...] = rng.uniform(0.5, 1.5, value.shape) if "var" in name else rng.normal(0, 0.6, value.shape)
    return net.eval()


def by_onnxruntime(path, x):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def held(net, shape, path, rtol=RTOL, n=3):
    """Write it; compare with onnxruntime, and with what is read back, forward and backward."""
    x = normal(np.random.default_rng(5), (n, *shape)).astype(np.float32)
    export(net, path, shape)
    want = net(x)
    got = by_onnxruntime(path, x)
    assert got.shape == want.shape and np.abs(want).max() > 0.01
    assert np.abs(got - want).max() <= rtol * np.abs(want).max()
    again = load(path)
    y = again.eval(save=True)(x)
    assert np.abs(y - want).max() <= rtol * np.abs(want).max()
    dy = normal(np.random.default_rng(6), want.shape).astype(np.float32)
    net.eval(save=True)(x)
    dx = net.backward(dy)
    assert np.abs(again.backward(dy) - dx).max() <= rtol * np.abs(dx).max()
    grads = [sorted(np.abs(p.grad).sum() for p in one.parameters()) for one in (net, again)]
    assert len(grads[0]) == len(grads[1])
    np.testing.assert_allclose(grads[1], grads[0], rtol=1e-3)
    return again


LAYERS = {
    "conv": (lambda: sn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), groups=2), (4, 7, 5)),
    "conv without bias": (lambda: sn.Conv2d(4, 6, 1, 2, bias=False), (4, 7, 5)),
    "transposed conv": (lambda: sn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), groups=2), (4, 5, 6)),
    "linear": (lambda: sn.Linear(7, 5), (7,)),
    "linear without bias": (lambda: sn.Linear(7, 5, bias=False), (7,)),
    "batch norm": (lambda: sn.BatchNorm2d(4, eps=0.01), (4, 5, 3)),
    "group norm": (lambda: sn.GroupNorm(2, 4, eps=0.01), (4, 5, 3)),
    "layer norm": (lambda: sn.LayerNorm((4, 5, 3), eps=0.01), (4, 5, 3)),
    "layer norm of rows": (lambda: sn.LayerNorm(3, eps=0.01), (4, 5, 3)),
    "ReLU": (sn.ReLU, (4, 5, 3)),
    "ReLU6": (sn.ReLU6, (4, 5, 3)),
    "LeakyReLU": (lambda: sn.LeakyReLU(0.2), (4, 5, 3)),
    "Sigmoid": (sn.Sigmoid, (4, 5, 3)),
    "Tanh": (sn.Tanh, (4, 5, 3)),
    "GELU": (sn.GELU, (4, 5, 3)),
    "Hardsigmoid": (sn.Hardsigmoid, (4, 5, 3)),
    "Hardswish": (sn.Hardswish, (4, 5, 3)),
    "SiLU": (sn.SiLU, (4, 5, 3)),
    "Softmax": (lambda: sn.Softmax(-1), (4, 5, 3)),
    "max pool": (lambda: sn.MaxPool2d((3, 2), (2, 1), (1, 0), ceil_mode=True), (4, 8, 5)),
    "average pool": (lambda: sn.AvgPool2d((3, 2), 2, 1, True, False), (4, 7, 6)),
    "average pool, padding counts": (lambda: sn.AvgPool2d(2, 2, 1), (4, 6, 8)),
    "global average pool": (sn.GlobalAvgPool2d, (4, 5, 3)),
    "adaptive pool to 1": (lambda: sn.AdaptiveAvgPool2d(1), (4, 5, 3)),
    "nearest": (lambda: sn.Upsample(scale_factor=(2, 3)), (4, 5, 3)),
    "bilinear": (lambda: sn.Upsample(scale_factor=2, mode="bilinear"), (4, 5, 3)),
    "bilinear, corners": (lambda: sn.Upsample(size=(9, 4), mode="bilinear", align_corners=True), (4, 5, 3)),
    "flatten": (sn.Flatten, (4, 5, 3)),
    "dropout": (lambda: sn.Dropout(0.5), (4, 5, 3)),
    "identity": (sn.Identity, (4, 5, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_there_and_back(name, tmp_path):
    make, shape = LAYERS[name]
    held(drawn(sn.Sequential(make(), sn.Identity())), shape, tmp_path / "it.onnx")


def test_every_layer_that_has_a_name_is_tried():
    from scratchnet.onnx.writers import WRITERS

    tried = {type(make()).__name__ for make, _ in LAYERS.values()}
    assert set(WRITERS) - tried == {"BatchNorm1d", "Quantize", "QuantizedConv2d", "QuantizedLinear"}


NETS = {
    "U-Net": lambda: sn.Sequential(
        sn.Conv2d(3, 4, 3, padding=1),
        sn.Concat(
            sn.Identity(), sn.Sequential(sn.MaxPool2d(2), sn.Conv2d(4, 5, 1), sn.SiLU(), sn.ConvTranspose2d(5, 4, 2, 2))
        ),
        sn.Conv2d(8, 2, 1),
    ),
    "squeeze and excitation": lambda: sn.Sequential(
        sn.Conv2d(3, 4, 3, padding=1),
        sn.Multiply(sn.Identity(), sn.Sequential(sn.GlobalAvgPool2d(), sn.Conv2d(4, 4, 1), sn.Sigmoid())),
    ),
    "shortcuts": lambda: sn.Sequential(
        sn.Residual(sn.Conv2d(3, 4, 3, padding=1), sn.BatchNorm2d(4), shortcut=sn.Conv2d(3, 4, 1), after=sn.ReLU()),
        sn.Residual(sn.Conv2d(4, 4, 1)),
        sn.Add(sn.Conv2d(4, 2, 1), sn.Conv2d(4, 2, 3, padding=1), sn.Conv2d(4, 2, 1)),
    ),
    "features": lambda: sn.Sequential(sn.Linear(3, 5), sn.BatchNorm1d(5), sn.ReLU(), sn.Linear(5, 2)),
}


@pytest.mark.parametrize("name", NETS)
def test_a_network_with_branches_there_and_back(name, tmp_path):
    held(drawn(NETS[name]()), (3,) if name == "features" else (3, 6, 8), tmp_path / "it.onnx")


@pytest.mark.parametrize("variant", ["cifar", "imagenet", "blog"])
@pytest.mark.parametrize("folded", [False, True])
def test_mobilenetv2_there_and_back(variant, folded, tmp_path):
    rng = np.random.default_rng(0)
    net = MobileNetV2(7, 0.25, variant, rng=rng)
    for _ in range(2):
        net(normal(rng, (4, 3, 32, 32)).astype(np.float32))
    net.eval()
    side = 64 if variant == "imagenet" else 32
    again = held(net.fold_batch_norm() if folded else net, (3, side, side), tmp_path / "it.onnx")
    assert isinstance(again, Graph)


def test_float64_stays_float64(tmp_path):
    net = drawn(sn.Sequential(sn.Conv2d(3, 4, 3, dtype=np.float64), sn.ReLU6()))
    x = normal(np.random.default_rng(1), (2, 3, 5, 6))
    export(net, tmp_path / "it.onnx", (3, 5, 6))
    y = load(tmp_path / "it.onnx")(x)  # onnxruntime has no convolution for it
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, net(x), rtol=0, atol=1e-14)


def test_eight_bits_by_onnxruntime_are_the_whole_numbers_but_for_rounding(tmp_path):
    rng = np.random.default_rng(3)
    net = MobileNetV2(10, 0.1, rng=rng)
    for _, module in net.named_modules():
        if isinstance(module, sn.BatchNorm2d):
            module.momentum = 1.0
    x = normal(rng, (6, 3, 32, 32)).astype(np.float32)
    net(x)
    simulated = quantize(net.eval(), [(x, None)])
    export(simulated, tmp_path / "it.onnx", (3, 32, 32))
    kinds = [node.op_type for node in onnx.load(tmp_path / "it.onnx").graph.node]
    assert kinds.count("QuantizeLinear") == 66 and kinds.count("DequantizeLinear") == 66 + 2 * 53
    got, want = by_onnxruntime(tmp_path / "it.onnx", x), IntegerNetwork(simulated)(x)
    # onnxruntime rounds halves to even, and its float32 is a step off here and there: far less than 8 bits are from floats
    assert np.abs(got - want).max() < 0.5 * np.abs(net(x) - want).max() + 1e-6
    assert np.abs(got - want).max() < 0.1 * np.abs(want).max()


# The official node tests ------------------------------------------------------------------------------------------------

OPERATORS = sorted(set(operators.READERS) - {"Add", "Sum", "Mul", "Concat"})  # those take more than one input
LEAST = {  # how many tests of an operator a layer here passes
    "AveragePool": 7, "BatchNormalization": 2, "Conv": 5, "ConvTranspose": 6, "Flatten": 2, "Gelu": 1, "Gemm": 6,
    "GlobalAveragePool": 2, "GroupNormalization": 2, "HardSwish": 1, "LeakyRelu": 2, "MatMul": 1, "MaxPool": 7, "Relu": 1,
    "Resize": 3, "Sigmoid": 1, "Softmax": 6, "Tanh": 1,
}  # fmt: skip


def node_tests(operator):
    from onnx.backend.test.case.node import collect_testcases

    return [case for case in collect_testcases(operator) if len(case.model.graph.output) == 1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operator", OPERATORS)
def test_the_official_node_tests_pass_or_are_refused_by_name(operator):
    passed = 0
    for case in node_tests(operator):
        model = type(case.model)()
        model.CopyFrom(case.model)
        ((inputs, outputs),) = case.data_sets
        if np.ndim(inputs[0]) < 2 or np.asarray(inputs[0]).dtype.kind != "f" or np.size(inputs[0]) == 0:
            continue
        for value, array in zip(list(model.graph.input)[1:], inputs[1:], strict=True):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), value.name))
        try:
            net = reader.graph_of(model)
            y = net(np.asarray(inputs[0]))
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 300, case.name
            continue
        np.testing.assert_allclose(y, outputs[0], rtol=case.rtol, atol=case.atol, err_msg=case.name)
        passed += 1
    assert passed >= LEAST.get(operator, 0)


# Graphs ------------------------------------------------------------------------------------------------------------------


def test_a_value_that_is_read_often_gets_the_sum_of_its_gradients():
    rng = np.random.default_rng(2)
    convs = [sn.Conv2d(3, 3, 1, dtype=np.float64, rng=rng) for _ in range(3)]
    join = sn.Add(*(sn.Sequential() for _ in range(3)))
    net = Graph(
        [
            Node("a", convs[0], ("x",), "p"),
            Node("b", convs[1], ("p",), "q"),
            Node("unread", sn.Sigmoid(), ("q",), "r"),
            Node("c", convs[2], ("p",), "s"),
            Node("join", join, ("p", "q", "s"), "y"),
        ],
        "x",
        "y",
    )
    assert [name for name, _ in net.named_children()] == ["a", "b", "c", "join"]
    sn.gradcheck(net, normal(rng, (2, 3, 4, 5)))
    x = normal(rng, (2, 3, 4, 5))
    p = convs[0](x)
    np.testing.assert_allclose(net(x), p + convs[1](p) + convs[2](p), rtol=1e-13)


def test_a_graph_in_no_order_is_refused():
    with pytest.raises(ValueError, match="Graph: b reads 'p', which nothing before it makes"):
        Graph([Node("b", sn.ReLU(), ("p",), "y"), Node("a", sn.ReLU(), ("x",), "p")], "x", "y")
    with pytest.raises(ValueError, match="Graph: nothing makes 'z'"):
        Graph([Node("a", sn.ReLU(), ("x",), "p")], "x", "z")


# What is refused ----------------------------------------------------------------------------------------------------------


def model_of(*nodes, weights=(), inputs=("x",)):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list("NCHW")) for name in (*inputs, "y")]
    graph = helper.make_graph(list(nodes), "g", values[:-1], values[-1:], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


W = numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "w")
REFUSED = {
    "an unknown operator": (model_of(helper.make_node("Sin", ["x"], ["y"])), "node 0 Sin: no layer here does that"),
    "padding on one side": (
        model_of(helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 0, 0, 0], name="c"), weights=[W]),
        "node 0 Conv 'c': its padding differs from side to side",
    ),
    "a weight that is computed": (
        model_of(helper.make_node("Sigmoid", ["x"], ["w"]), helper.make_node("Conv", ["x", "w"], ["y"])),
        "node 1 Conv: input 1 is computed by the network, known are constants only",
    ),
    "other bounds": (
        model_of(
            helper.make_node("Clip", ["x", "", "six"], ["y"]),
            weights=[numpy_helper.from_array(np.array(6, np.float32), "six")],
        ),
        "node 0 Clip: bounds None and 6.0, known are 0 and 6, or 0 and none",
    ),
    "two inputs": (
        model_of(helper.make_node("Add", ["x", "z"], ["y"]), inputs=("x", "z")),
        "expected one input and one",
    ),
    "another axis": (
        model_of(helper.make_node("Concat", ["x", "x"], ["y"], axis=2)),
        "node 0 Concat: axis = 2, known is 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_layer_does_is_refused_by_name(name, tmp_path):
    model, message = REFUSED[name]
    (tmp_path / "it.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"it\.onnx: " + message.replace("(", r"\(")):
        load(tmp_path / "it.onnx")


def test_what_is_no_onnx_file_is_refused(tmp_path):
    (tmp_path / "it.onnx").write_bytes(b"PK\3\4 something else")
    with pytest.raises(ValueError, match="it.onnx is not a whole ONNX file"):
        load(tmp_path / "it.onnx")


def test_what_has_no_name_is_refused_and_no_file_is_left(tmp_path):
    class Own(sn.Module):
        def forward(self, x):
            return x

    for layer, name in ((Own(), "Own"), (sn.AdaptiveAvgPool2d((2, 3)), "AdaptiveAvgPool2d")):
        with pytest.raises(ValueError, match=f"^0 {name}: has no name in ONNX"):
            export(sn.Sequential(layer), tmp_path / "it.onnx", (3, 8, 9))
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, capsys):
    rng = np.random.default_rng(0)
    sn.save(tmp_path / "net.npz", MobileNetV2(10, 0.1, rng=rng))
    out = tmp_path / "net.onnx"
    assert __main__.main([str(tmp_path / "net.npz"), str(out), "--size", "32"]) == 0
    assert "net.onnx: x (N, 3, 32, 32) -> y (N, 10); onnxruntime's logits are within" in capsys.readouterr().out
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(out).graph.node}
    assert __main__.main([str(tmp_path / "net.npz"), str(out), "--size", "32", "--no-fold"]) == 0
    assert "BatchNormalization" in {node.op_type for node in onnx.load(out).graph.node}
    assert __main__.main([str(out), str(tmp_path / "other.onnx")]) == 2
    assert "error: " in capsys.readouterr().err and not (tmp_path / "other.onnx").exists()


def test_the_guides_lines_compute_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block_with("onnx.export("), names)
    x = names["x"]
    want = names["model"].eval()(x)
    for y, rtol in ((names["same"](x), 1e-5), (by_onnxruntime("net.onnx", x), 1e-5), (names["whole"](x), 0.3)):
        assert np.abs(y - want).max() <= rtol * np.abs(want).max()
    assert by_onnxruntime("net8.onnx", x).shape == (2, 10)
