"""A neural network engine from scratch, every gradient derived by hand. The names stand in the order in which to read.

`scratchnet.reference` comes first: what every operation is, in loops.
"""

from scratchnet.array import DeviceError, as_images, as_matrix, get_array_module, to_device  # noqa: I001 (reading order)
from scratchnet.module import Module, Parameter
from scratchnet.sequential import Residual, Sequential
from scratchnet.layers.linear import Flatten, Linear
from scratchnet.layers.activation import ReLU, ReLU6
from scratchnet.layers.loss import CrossEntropyLoss
from scratchnet.layers.norm import BatchNorm2d
from scratchnet.layers.conv import Conv2d
from scratchnet.layers import fused as fused
from scratchnet.layers import fused_depthwise as fused_depthwise
from scratchnet.layers import folding as folding
from scratchnet.layers.pool import AvgPool2d, GlobalAvgPool2d
from scratchnet.layers.dropout import Dropout
from scratchnet.threads import get_num_threads, set_num_threads
from scratchnet.kernels import use_kernels
from scratchnet.training.optim import SGD, Adam, AdamW
from scratchnet.gradcheck import GradcheckReport, GradientMismatch, gradcheck

__version__ = "0.1.0"
__all__ = [
    "DeviceError", "as_images", "as_matrix", "get_array_module", "to_device",
    "Module", "Parameter", "Sequential", "Residual",
    "Flatten", "Linear", "ReLU", "ReLU6", "CrossEntropyLoss", "BatchNorm2d", "Conv2d",
    "AvgPool2d", "GlobalAvgPool2d", "Dropout",
    "get_num_threads", "set_num_threads", "use_kernels",
    "SGD", "Adam", "AdamW",
    "GradcheckReport", "GradientMismatch", "gradcheck",
]  # fmt: skip
