"""`python -m scratchnet.onnx CHECKPOINT OUT.onnx`: a trained network as an ONNX file, checked by onnxruntime.

Where that is not installed nothing is checked. Exit code 1 where it computes something else, 2 where the checkpoint cannot
be read or the file not be written.
"""

import argparse
import sys

import numpy as np

from scratchnet.models import from_checkpoint
from scratchnet.onnx.export import export
from scratchnet.training.archive import CheckpointError
from scratchnet.weights import read

RTOL = 1e-5  # of the largest logit


def main(arguments=None):
    """Write the file and say what was checked; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scratchnet.onnx", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="a file of a MobileNetV2 or a ResNet")
    parser.add_argument("out", help="the ONNX file to write")
    parser.add_argument("--size", type=int, help="side of the pictures (default: the checkpoint's, else 224)")
    parser.add_argument("--no-fold", action="store_true", help="leave batch norm beside the convolutions")
    args = parser.parse_args(arguments)
    try:
        model = from_checkpoint(args.checkpoint)
        config = read(args.checkpoint).header.get("config", {})
        shape = (3, *[args.size or config.get("image_size", 224)] * 2)
        model = model if args.no_fold else model.fold_batch_norm()
        export(model, args.out, shape)
    except (CheckpointError, ImportError, ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    said = f"{args.out}: x (N, {', '.join(map(str, shape))}) -> y (N, {model.num_classes})"
    try:
        import onnxruntime
    except ImportError:
        print(f"{said}; not checked, since onnxruntime is not installed")
        return 0
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    (got,) = onnxruntime.InferenceSession(args.out, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    want = model(x)
    off = np.abs(got - want).max() / np.abs(want).max()
    print(f"{said}; onnxruntime's logits are within {off:.1e} of the largest")
    return 0 if off <= RTOL else 1


if __name__ == "__main__":
    sys.exit(main())
