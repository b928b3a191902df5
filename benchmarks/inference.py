"""Logits of MobileNetV2 (cifar), batch norm folded, against onnxruntime and PyTorch's eval mode on the same cores.

    python benchmarks/inference.py [--rounds 5] [--threads 2] [--width 0.5 1.0] [--batch 1 32 256] [--json FILE]

(Extra `bench`.) All three have the same weights; onnxruntime gets a graph of Conv (with the folded batch norm), Clip,
Add, GlobalAveragePool, Flatten and Gemm. Every engine runs in a child process of its own, one after another, several
rounds; a round's ratio is our time over onnxruntime's in that round, and the median of the rounds is reported. Below 1
scratchnet is faster.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for models/, which is not installed
ENGINES = ("scratchnet", "onnxruntime", "torch")
SECONDS = 1.5  # each child measures for about so long


def network(width):
    """The network, with running statistics that are none of zeros and ones."""
    from models import MobileNetV2

    rng = np.random.default_rng(0)
    model = MobileNetV2(10, width, rng=rng)
    model(rng.standard_normal((16, 3, 32, 32), dtype=np.float32))
    return model


def pictures(batch):
    """A batch in NumPy's order (N, C, H, W), which suits the others."""
    return np.random.default_rng(1).standard_normal((batch, 3, 32, 32), dtype=np.float32)


def scratchnet_logits(width, threads):
    """A function of a batch."""
    import scratchnet as sn

    sn.set_num_threads(threads)
    return network(width).fold_batch_norm()


def onnxruntime_logits(width, threads):
    """The same in onnxruntime."""
    import onnxruntime

    from scratchnet.onnx import export

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        export(network(width).fold_batch_norm(), path, (3, 32, 32))
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def torch_logits(width, threads):
    """The same in PyTorch, eager, in its own memory order."""
    import torch

    from benchmarks.torch_mobilenetv2 import TorchMobileNetV2

    torch.set_num_threads(threads)
    model = TorchMobileNetV2(10, width, "cifar")
    model.load_state_dict({key: torch.tensor(value) for key, value in network(width).state_dict().items()})
    model.eval()
    return torch.inference_mode()(lambda x: model(torch.from_numpy(x)).numpy())


def child(engine, width, batches, threads):
    """Print a JSON line: for each batch the median seconds of a call; and some logits."""
    logits = globals()[f"{engine}_logits"](width, threads)
    found, said = {}, logits(pictures(4))
    for batch in batches:
        x, times = pictures(batch), []
        logits(x), logits(x)
        while sum(times) < SECONDS or len(times) < 5:
            start = time.perf_counter()
            logits(x)
            times.append(time.perf_counter() - start)
        found[batch] = statistics.median(times)
    print(json.dumps({"seconds": found, "logits": said.tolist()}))


def measure(engine, width, batches, threads):
    """Run a child."""
    command = [sys.executable, __file__, "--child", engine, "--width", str(width), "--threads", str(threads)]
    command += ["--batch", *map(str, batches)]
    env = os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(width, batches, threads, rounds):
    """Rows of the table for a width."""
    times = {(engine, batch): [] for engine in ENGINES for batch in batches}
    for _ in range(rounds):
        found = {engine: measure(engine, width, batches, threads) for engine in ENGINES}
        for engine, result in found.items():
            np.testing.assert_allclose(
                result["logits"], found["onnxruntime"]["logits"], rtol=0, atol=1e-4, err_msg=engine
            )
            for batch in batches:
                times[engine, batch].append(result["seconds"][str(batch)] / batch * 1e3)
    for batch in batches:
        ms = {engine: statistics.median(times[engine, batch]) for engine in ENGINES}
        ratios = [a / b for a, b in zip(times["scratchnet", batch], times["onnxruntime", batch], strict=True)]
        yield {
            "width": width,
            "batch": batch,
            "ms_per_picture": ms,
            "ratios": ratios,
            "ratio": statistics.median(ratios),
        }


def processor():
    """The CPU's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child, args.width[0], args.batch, args.threads)
    print(f"{processor()}, {args.threads} threads; ms a picture, ratio: scratchnet's time over onnxruntime's")
    print(f"{'width':>5} {'batch':>5} {'scratchnet':>11} {'onnxruntime':>12} {'torch':>8} {'ratio':>7}  of each round")
    rows = []
    for width in args.width:
        for row in compare(width, args.batch, args.threads, args.rounds):
            rows.append(row)
            ms = [row["ms_per_picture"][engine] for engine in ENGINES]
            each = " ".join(f"{ratio:.2f}" for ratio in row["ratios"])
            print(
                f"{width:>5} {row['batch']:>5} {ms[0]:>11.3f} {ms[1]:>12.3f} {ms[2]:>8.3f} {row['ratio']:>6.2f}×  {each}"
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
