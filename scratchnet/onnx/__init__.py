"""ONNX, the format in which other programs take a network: out (`export`) and in (`load`). Needs the package `onnx`.

`python -m scratchnet.onnx CHECKPOINT OUT.onnx` writes a trained MobileNetV2.
"""

from scratchnet.onnx.export import export
from scratchnet.onnx.graph import Graph, Node
from scratchnet.onnx.reader import load

__all__ = ["Graph", "Node", "export", "load"]
