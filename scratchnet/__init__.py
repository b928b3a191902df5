"""A neural network engine from scratch, every gradient derived by hand. The names stand in the order in which to read.

`scratchnet.reference` comes first: what every operation is, in loops.
"""

from scratchnet.array import as_images, as_matrix, to_device  # noqa: I001 (reading order)
from scratchnet.device import DeviceError, get_array_module, use_tf32
from scratchnet.module import Module, Parameter
from scratchnet.layers.linear import Flatten, Linear
from scratchnet.layers.activation import ReLU, ReLU6
from scratchnet.layers.loss import CrossEntropyLoss
from scratchnet.layers.norm import BatchNorm2d
from scratchnet.layers.conv import Conv2d
from scratchnet.layers.pool import AvgPool2d, GlobalAvgPool2d
from scratchnet.layers.dropout import Dropout
from scratchnet.fused.inference import fold_batch_norm
from scratchnet.plan import Plan, plan
from scratchnet.sequential import Residual, Sequential
from scratchnet.kernels import use_kernels
from scratchnet.kernels.cpu.buffers import free_memory
from scratchnet.parallel import ranks
from scratchnet.parallel.threads import get_num_threads, set_num_threads
from scratchnet.training.optim import SGD, Adam, AdamW
from scratchnet.training.batches import Batches
from scratchnet.training.recorded import RecordedStep
from scratchnet.gradcheck import GradcheckReport, GradientMismatch, gradcheck

__version__ = "0.1.0"
__all__ = [
    "DeviceError", "as_images", "as_matrix", "get_array_module", "to_device",
    "Module", "Parameter", "Sequential", "Residual", "Plan", "plan", "fold_batch_norm",
    "Flatten", "Linear", "ReLU", "ReLU6", "CrossEntropyLoss", "BatchNorm2d", "Conv2d",
    "AvgPool2d", "GlobalAvgPool2d", "Dropout",
    "ranks", "get_num_threads", "set_num_threads", "use_kernels", "use_tf32", "free_memory",
    "SGD", "Adam", "AdamW", "Batches", "RecordedStep",
    "GradcheckReport", "GradientMismatch", "gradcheck",
]  # fmt: skip
