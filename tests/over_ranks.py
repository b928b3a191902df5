"""What one process computes, ranks compute together: a program of a few ranks, which test_ranks.py starts and asks.

    mpiexec -n 3 python tests/over_ranks.py ROUND …        one line of JSON on rank 0: {check: what came out}

A round is a function here that yields (check, what came out). Numbers that are to be alike are compared on every rank, and
the largest difference of all ranks comes out: so no rank leaves the others waiting for a comparison that failed.
"""

import ctypes
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "cuda")]  # as pyproject.toml tells pytest

from conformance import CPU_KERNELS, ROWS, Case, Criterion, cut_small, step  # noqa: E402
from strategies import in_layout  # noqa: E402

import scratchnet as sn  # noqa: E402
from models import MobileNetV2  # noqa: E402
from scratchnet.array import to_device  # noqa: E402
from scratchnet.device import is_array  # noqa: E402
from scratchnet.fused.block import block_backward, block_forward  # noqa: E402
from scratchnet.fused.dense import dense_norm_relu6_backward, dense_norm_relu6_forward  # noqa: E402
from scratchnet.fused.depthwise import depthwise_norm_relu6_backward, depthwise_norm_relu6_forward  # noqa: E402
from scratchnet.fused.front import front_backward, front_forward  # noqa: E402
from scratchnet.fused.pointwise import conv_norm_relu6_backward, conv_norm_relu6_forward  # noqa: E402
from scratchnet.fused.project import project_backward, project_forward  # noqa: E402
from scratchnet.parallel import ranks  # noqa: E402

KERNELS = (False, *CPU_KERNELS)
SLOW = os.environ.get("SCRATCHNET_SLOW") == "1"
PICTURES = 5
SIZES = {"cifar": 32, "imagenet": 64, "blog": 96}  # of pictures, large enough that rounding does not grow: `networks`
ROUNDS = {}


def a_round(function):
    ROUNDS[function.__name__] = function
    return function


# Comparing ------------------------------------------------------------------------------------------------------------


def difference(got, want, places=slice(None)):
    """The largest difference on any rank, of the largest number of its array (as `conformance.close` has it).

    Args:
        got: this rank's arrays, by name; those that it has no part of are left out.
        want: one process's.
        places: which rows of want's y and dx are this rank's.
    """
    floor, worst = 1e-3 * max(np.abs(value).max() for value in want.values()), 0.0
    for name, value in got.items():
        here = want[name][places] if name in ("y", "dx") and np.ndim(want[name]) else want[name]
        assert np.shape(value) == np.shape(here), f"{name}: {np.shape(value)}, not {np.shape(here)}"
        error = np.abs(value.astype(np.float64) - here).max() / max(np.abs(want[name]).max(), floor)
        worst = float(np.maximum(worst, error))  # NaN stays
    return ranks.largest(worst)


def step_of_all(module, x, dy, device="cpu"):
    """`conformance.step` of this rank's share of the batch, and which share that is; without y and dx where it is empty."""
    here = ranks.share(len(x))
    idle = here.start == here.stop
    module.zero_grad()
    if isinstance(module, Criterion):
        module.first = here.start if not idle else 0
    mine = slice(0, 1) if idle else here
    with ranks.without_weight(idle):
        y = module(to_device(in_layout(x[mine], "channel-major"), device))
        part = to_device(in_layout(dy[mine], "channel-major"), device) if dy.ndim else float(dy)
        dx = module.backward(part)
        ranks.sum_gradients(module.parameters())
    arrays = {} if idle else {"y": y, "dx": dx}
    arrays |= {f"gradient of {name}": parameter.grad for name, parameter in module.named_parameters()}
    arrays |= module.state_dict()
    return {name: np.array(to_device(v, "cpu") if is_array(v) else v) for name, v in arrays.items()}, here


def same_everywhere(*arrays):
    """How many ranks have other bits than rank 0."""
    return len(ranks.those_that_differ(digest_of(*arrays)))


def digest_of(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).digest()


# The layers -----------------------------------------------------------------------------------------------------------


@a_round
def layers():
    """Every row of the conformance table, with more pictures than ranks and with fewer."""
    for which in KERNELS if SLOW or ranks.size == 2 else KERNELS[-1:]:
        sn.use_kernels(which)
        for row in ROWS:
            for pictures in (max(PICTURES, row.shape[0]), max(row.pictures, ranks.size - 1)):
                yield f"{row.name}, {pictures} pictures, kernels {which}", row_over_ranks(row, pictures)


def row_over_ranks(row, pictures, dtype=np.float64, device="cpu"):
    with pytest.MonkeyPatch.context() as patch:
        if row.cut:
            cut_small(patch)
        shape = pictures, *row.shape[1:]
        with ranks.alone():
            want = step(*Case(row, "train").build(np.float64, shape))
            module, x, dy = Case(row, "train").build(dtype, shape)
            module.to(device)
        got, here = step_of_all(module, x, dy, device)
        return difference(got, want, here)


@a_round
def fused():
    """The plain functions of the fused steps, which no plan takes without a kernel."""
    rng = np.random.default_rng(3)

    def draw(*shape):
        return rng.standard_normal(shape)

    def norm(channels):
        return 1 + 0.3 * draw(channels), draw(channels), 1e-5

    geometry = (2, 1), (1, 1), (1, 1)
    expand, depthwise = (draw(6, 3, 1, 1), *norm(6)), (draw(6, 1, 3, 3), *norm(6))
    project, stem = (draw(3, 6, 1, 1), *norm(3)), (draw(6, 3, 3, 3), *norm(6))
    cases = {
        "1×1": (conv_norm_relu6_forward, conv_norm_relu6_backward, 0, draw(7, 3, 5, 4), expand),
        "depthwise": (
            depthwise_norm_relu6_forward, depthwise_norm_relu6_backward, -1, draw(6, 5, 4, 7), (*depthwise, *geometry),
        ),
        "front": (front_forward, front_backward, -1, draw(3, 5, 4, 7), (*expand, *depthwise, *geometry)),
        "block": (block_forward, block_backward, -1, draw(3, 5, 4, 7), (expand, depthwise, project, *geometry)),
        "stem": (
            dense_norm_relu6_forward, dense_norm_relu6_backward, -1, draw(3, 5, 4, 7), (*stem, *geometry),
        ),
        "projection": (project_forward, project_backward, 0, draw(7, 6, 5, 4), project),
    }  # fmt: skip
    for name, (forward, backward, axis, x, options) in cases.items():
        x = 3 + x  # a mean that is to be taken away
        with ranks.alone():
            y, *moments, cache = forward(x, *options)
            dy = draw(*y.shape)
            dx, *gradients = backward(dy, cache)
        here = (Ellipsis, ranks.share(7)) if axis else ranks.share(7)
        want = [y[here], dx[here], *moments, *gradients]
        y, *moments, cache = forward(x[here], *options)
        dx, *gradients = backward(dy[here], cache)
        got = [y, dx, *moments, *map(ranks.sum_over_ranks, gradients)]
        yield name, difference(*(dict(zip(map(str, range(len(want))), arrays, strict=True)) for arrays in (got, want)))


@a_round
def alike_channels():
    """1×1, norm, ReLU6 where channels are alike, in all pictures or in one rank's alone: every rank takes the same way."""
    sn.use_kernels("numpy")
    for name, alike in (("all", slice(None)), ("the first rank's", ranks.share(6, 0))):
        rng = np.random.default_rng(1)
        x, dy = rng.standard_normal((6, 8, 4, 3)), rng.standard_normal((6, 8, 4, 3))
        x[alike] = x[alike, :1] + 1e-6 * x[alike]

        def make(rng=rng):
            conv = sn.Conv2d(8, 8, 1, bias=False, dtype=np.float64, rng=np.random.default_rng(2))
            conv.weight.data[...] -= conv.weight.data.mean(axis=1, keepdims=True)  # what is alike is taken away
            return sn.Sequential(conv, sn.BatchNorm2d(8, dtype=np.float64), sn.ReLU6())

        with ranks.alone():
            want = step(make(), in_layout(x, "channel-major"), in_layout(dy, "channel-major"))
        got, here = step_of_all(make(), x, dy)
        yield f"{name} pictures", difference(got, want, here)


@a_round
def local():
    """Batch norm by each rank's own statistics: other values, and the running ones those of the whole batch."""
    rng = np.random.default_rng(1)
    x, dy = (in_layout(rng.standard_normal((PICTURES, 4, 3, 2)), "channel-major") for _ in range(2))
    for which in KERNELS:
        sn.use_kernels(which)
        with ranks.alone():
            want = step(sn.BatchNorm2d(4, dtype=np.float64), x, dy)
        ranks.local_batch_norm = True
        got, here = step_of_all(sn.BatchNorm2d(4, dtype=np.float64), x, dy)
        with ranks.alone():
            own = step(sn.BatchNorm2d(4, dtype=np.float64), x[here], dy[here])
        state, _ = train("blog", PICTURES, over_ranks=True)
        ranks.local_batch_norm = False
        whole, _ = train("blog", PICTURES, over_ranks=True)
        running = {name: value for name, value in got.items() if name.startswith("running")}
        yield f"running statistics, kernels {which}", difference(running, want)
        yield f"own values, kernels {which}", difference({name: got[name] for name in ("y", "dx")}, own)
        yield f"from the whole batch's, kernels {which}", difference({"y": got["y"]}, want, here)
        yield f"a network's from the whole batch's, kernels {which}", difference(state, whole)
        yield f"ranks with other weights, kernels {which}", same_everywhere(*state.values())


# A network ------------------------------------------------------------------------------------------------------------


def train(variant, pictures, over_ranks, dtype=np.float64, steps=2, size=None, frozen=0):
    """Some steps of a narrow MobileNetV2: its state, gradients and losses; and how many bits of it other ranks have.

    The first `frozen` parts of it are not trained, and with them one batch norm behind.
    """
    rng = np.random.default_rng(4)
    model = MobileNetV2(10, 0.1, variant, dropout=0.2, dtype=dtype, rng=rng)
    for part in [model.features[:frozen], *([model.features[-1][1]] if frozen else [])]:
        part.requires_grad_(False)
    criterion = sn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = sn.SGD(model.named_parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    losses, sides = [], (size or SIZES[variant],) * 2
    for _ in range(steps):
        x = rng.standard_normal((pictures, 3, *sides)).astype(dtype)
        labels = rng.integers(0, 10, pictures)
        here = ranks.share(pictures) if over_ranks else slice(0, pictures)
        idle = here.start == here.stop
        here = slice(0, 1) if idle else here
        model.zero_grad()
        with ranks.without_weight(idle):
            losses.append(criterion(model(in_layout(x[here], "channel-major")), labels[here]))
            model.backward(criterion.backward())
            if over_ranks:
                ranks.sum_gradients(model.parameters())
        optimizer.step()
    values = {name: np.array(value) for name, value in (model.state_dict() | optimizer.state_dict()).items()}
    values |= {f"gradient of {name}": parameter.grad.copy() for name, parameter in model.named_parameters()}
    return values | {"losses": np.array(losses)}, losses[-1].dtype


@a_round
def networks():
    """Two steps of each variant; with fewer pictures than ranks; and one that ends in maps of one pixel.

    Where a channel has few values, a network at random weights makes rounding grow from one step to the next: on 32×32
    pictures two steps of one process with NumPy's kernels and without differ by 1e-9, and one step by 1e-12.
    """
    for which in KERNELS if SLOW or ranks.size == 2 else KERNELS[1:]:
        sn.use_kernels(which)
        for variant in SIZES if SLOW or which else ("imagenet", "blog"):
            yield f"{variant}, kernels {which}", network_over_ranks(variant, 7)
        yield f"fewer pictures than ranks, kernels {which}", network_over_ranks("cifar", ranks.size - 1)
        yield f"frozen in part, kernels {which}", network_over_ranks("imagenet", 7, frozen=9)
        last = network_over_ranks("imagenet", ranks.size + 2, steps=1, size=32)
        yield f"one value a channel on a rank, kernels {which}", last


def network_over_ranks(variant, pictures, **options):
    with ranks.alone():
        want, _ = train(variant, pictures, over_ranks=False, **options)
    return difference(train(variant, pictures, over_ranks=True, **options)[0], want)


@a_round
def bits():
    """What two runs are to have alike, and all ranks; in float32, where sums in another order differ more often."""
    sn.use_kernels("numpy")
    state, dtype = train("cifar", 7, over_ranks=True, dtype=np.float32)
    yield "ranks with other bits", same_everywhere(*state.values())
    yield "dtypes", sorted({value.dtype.name for value in state.values()} | {dtype.name})
    yield "digest", digest_of(*state.values()).hex()


# The seam itself ------------------------------------------------------------------------------------------------------


@a_round
def seam():
    """parallel/ranks.py."""
    all_of = [np.random.default_rng(r) for r in range(ranks.size)]

    def draw(count, dtype=np.float32):
        """What each rank has: numbers of very different sizes, whose sum depends on the order."""
        found = [10.0 ** rng.uniform(-4, 4, count) * rng.choice([-1, 1], count) for rng in all_of]
        return [array.astype(dtype) for array in found]

    def in_order(arrays):
        total = arrays[0].copy()
        for array in arrays[1:]:
            total += array
        return total

    for count in (96, 24_000):
        arrays = draw(count)
        yield f"sums of {count}: other bits", int((ranks.sum_over_ranks(arrays[ranks.rank]) != in_order(arrays)).sum())

    shapes = (7,), (3, 5, 1, 1), (9_999,), ()
    parameters, want = [], []
    for k, shape in enumerate(shapes):
        arrays = [array.reshape(shape) for array in draw(int(np.prod(shape)), (np.float32, np.float64)[k % 2])]
        parameters.append(sn.Parameter(np.zeros(shape, arrays[0].dtype)))
        parameters[-1].grad[...] = arrays[ranks.rank]
        want.append(in_order(arrays) if shape else np.asarray(sum(arrays)))
    homes = [parameter.grad for parameter in parameters]
    ranks.sum_gradients(parameters)
    moved = sum(parameter.grad is not home for parameter, home in zip(parameters, homes, strict=True))
    other = sum(int((parameter.grad != wanted).sum()) for parameter, wanted in zip(parameters, want, strict=True))
    yield "gradients: other bits", moved + other

    given = np.array([1.5, 2.5], np.float32), np.array([0.5, 1.0], np.float32)
    first, second = ranks.sum_over_ranks(*given)
    yield "several sums", [first.tolist(), second.tolist(), first.dtype.name, given[0].tolist()]
    total, count = ranks.sum_over_ranks(np.asarray(np.float32(0.25)), 3)
    yield "a number and a 0-d array", [float(total), total.dtype.name, np.shape(total), count]

    for counts in ([4, 9, 2, 5][: ranks.size], [3, 0, 6, 1][: ranks.size]):
        rows = [5 + 3 * rng.standard_normal((6, max(1, n))) for rng, n in zip(all_of, counts, strict=True)]
        mine, idle = rows[ranks.rank], counts[ranks.rank] == 0
        everything = np.concatenate([part for part, n in zip(rows, counts, strict=True) if n], axis=1)
        with ranks.without_weight(idle):
            own = mine.mean(axis=1)[:, None], mine.var(axis=1)[:, None]
            mean, var, total = ranks.pooled_moments(*own, mine.shape[1])
            halves = ranks.pooled_mean(mine.mean(axis=1), mine.shape[1])
            places = ranks.place(max(1, counts[ranks.rank]))
            summed = ranks.sum_over_ranks(mine.sum(axis=1))
        want = {"mean": everything.mean(axis=1)[:, None], "var": everything.var(axis=1)[:, None]}
        want |= {"sum": everything.sum(axis=1), "mean alone": everything.mean(axis=1)}
        got = {"mean": mean, "var": var, "sum": summed, "mean alone": halves[0]}
        yield f"moments of {counts}", difference(got, want)
        first = 0 if idle else sum(counts[: ranks.rank])
        right = total == halves[1] == sum(counts) and places == (first, sum(counts))
        yield f"numbers of {counts} are wrong", ranks.largest(0 if right else 1)

    for count in range(2 * ranks.size + 2):
        parts = [ranks.share(count, of) for of in range(ranks.size)]
        sizes = [part.stop - part.start for part in parts]
        ends = [part.stop for part in parts]
        fine = [part.start for part in parts] == [0, *ends[:-1]] and ends[-1] == count and max(sizes) - min(sizes) < 2
        fine = fine and parts[ranks.rank] == ranks.share(count)
        yield f"shares of {count} are wrong", ranks.largest(0 if fine else 1)

    with ranks.alone():
        yield "alone", [ranks.rank, ranks.size, ranks.place(4), ranks.sum_over_ranks(2.5)]
    yield "largest", ranks.largest(ranks.rank * 1.5)
    yield "from the first", [ranks.from_first(lambda: {"made on": ranks.rank}), ranks.from_first(lambda: 1, wait=5)]
    yield "differ", ranks.those_that_differ(b"even" if ranks.rank % 2 == 0 else b"odd!")
    yield "too few numbers", ranks.from_first(str) + _of_too_few()


def _of_too_few():
    """What batch norm says of a batch of one number a channel, which one rank has."""
    layer = sn.Sequential(sn.Sequential(sn.BatchNorm2d(2)))
    try:
        with ranks.without_weight(ranks.rank > 0):
            layer(np.ones((1, 2, 1, 1), np.float32))
    except ValueError as error:
        return str(error)
    return "nothing"


@a_round
def cuda():
    """The rows with a sum over the batch, on the stand-in for CuPy: as many blocks and threads as conftest.py sets."""
    import standin

    from scratchnet.kernels.cuda import launch

    sys.modules["cupy"] = standin
    launch.THREADS, launch.BLOCKS, launch.REDUCING_BLOCKS = 32, 6, 6
    for which in (True, False):
        sn.use_kernels(which)
        for row in ROWS:
            if (
                row.samples is None
                and has_batch_sum(row)
                and (which or SLOW or row.name in ("block, stride", "dropout"))
            ):
                yield f"{row.name}, kernels {which}", row_over_ranks(row, PICTURES, device="cuda")
                if SLOW or row.name in ("1×1, norm, ReLU6", "cross entropy"):
                    fewer = max(row.pictures, ranks.size - 1)
                    yield f"{row.name}, fewer, kernels {which}", row_over_ranks(row, fewer, device="cuda")


@a_round
def cards():
    """The gradients' sum by NCCL, as far as can be seen without cards: a communicator that has MPI do what it is asked."""
    import standin

    sys.modules["cupy"] = standin
    rng = np.random.default_rng(ranks.rank)
    values = [10.0 ** rng.uniform(-4, 4, shape) for shape in ((5, 3), (40_001,))]
    values = [value.astype(dtype) for dtype in (np.float32, np.float64) for value in values]
    calls = []

    class Communicator:
        def __init__(self, size, identifier, rank):
            calls.append((size, identifier, rank) == (ranks.size, (7, -1), ranks.rank))

        def allGather(self, sent, received, count, kind, stream):  # noqa: N802 (CuPy's name)
            there = [
                (ctypes.c_char * (count * kind * n)).from_address(at) for at, n in ((sent, 1), (received, ranks.size))
            ]
            ranks._world.comm.Allgather(*there)
            calls.append(stream == 17)

    nccl = SimpleNamespace(available=True, NCCL_FLOAT32=4, NCCL_FLOAT64=8, NcclCommunicator=Communicator)
    nccl.get_unique_id = lambda: (7, -1)
    standin.cuda.get_current_stream = lambda: SimpleNamespace(ptr=17)
    standin.cuda.Device = lambda: SimpleNamespace(id=ranks.rank % 2)
    sums = {}
    for name, present, bus in (
        ("no NCCL", None, "{}"),
        ("NCCL", nccl, "{}"),
        ("one card", nccl, "0"),
        ("a stub", nccl, "{}"),
    ):
        nccl.available = name != "a stub" or ranks.rank > 0
        if present:
            standin.cuda.nccl = present
        standin.cuda.runtime = SimpleNamespace(deviceGetPCIBusId=bus.format)
        calls.clear()
        ranks._world._cards = None
        for idle in (False, True):
            parameters = [sn.Parameter(standin.asarray(np.zeros_like(value))) for value in values]
            for parameter, value in zip(parameters, values, strict=True):
                parameter.grad[...] = standin.asarray(value)
            with ranks.without_weight(idle and ranks.rank == 0):
                ranks.sum_gradients(parameters)
            sums[name, idle] = digest_of(*(parameter.grad.get() for parameter in parameters))
            yield f"{name}, idle {idle}: other bits", int(sums[name, idle] != sums["no NCCL", idle])
        yield f"{name}: calls", [len(calls), all(calls), sums[name, True] != sums[name, False]]


def has_batch_sum(row):
    module = row.make(np.random.default_rng(0), np.float32)
    kinds = sn.BatchNorm1d, sn.BatchNorm2d, sn.Dropout, Criterion
    return any(isinstance(part, kinds) for _, part in module.named_modules()) or isinstance(module, kinds)


# Faults ---------------------------------------------------------------------------------------------------------------


def wait_for_ever():
    for _ in range(10_000):
        ranks.sum_over_ranks(1.0)
        time.sleep(0.01)


@a_round
def killed():
    ranks.sum_over_ranks(1.0)  # all have started
    if ranks.rank == ranks.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_ever()
    yield


@a_round
def hanging():
    if ranks.rank == ranks.size - 1:
        time.sleep(100)
    wait_for_ever()
    yield


@a_round
def raising():
    if ranks.rank == ranks.size - 1:
        raise ArithmeticError("no more numbers")
    wait_for_ever()
    yield


@a_round
def otherwise():
    """A rank that does something else than the others."""
    ranks.sum_over_ranks(np.ones(3))
    if ranks.rank == 0:
        wait_for_ever()
    ranks.from_first(str, wait=1)
    yield


def main(names):
    ranks.start(wait=float(os.environ.get("RANKS_WAIT", "60")))
    sn.set_num_threads(1)
    found = {}
    for name in names:
        begun = time.perf_counter()
        try:
            for check, value in ROUNDS[name]():
                found[f"{name}: {check}"] = value
        except ranks.RankFailed as error:  # into a file: what mpiexec has not yet passed on may be lost when it ends
            Path(os.environ["RANKS_SAID"], f"{ranks.rank}").write_text(f"{error}")
            raise
        found[f"{name}: seconds"] = time.perf_counter() - begun
    if ranks.rank == 0:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
