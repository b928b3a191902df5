"""A neural network engine from scratch, every gradient derived by hand. The names stand in the order in which to read.

`scratchnet.reference` comes first: what every operation is, in loops.
"""

from scratchnet.array import as_images, as_matrix, to_device  # noqa: I001 (reading order)
from scratchnet.device import DeviceError, get_array_module, use_tf32
from scratchnet.module import Module, Parameter
from scratchnet.layers.linear import Flatten, Identity, Linear
from scratchnet.layers.activation import ReLU, ReLU6
from scratchnet.layers.smooth import GELU, SiLU, Sigmoid, Softmax, Tanh
from scratchnet.layers.hard import Hardsigmoid, Hardswish, LeakyReLU
from scratchnet.layers.loss import CrossEntropyLoss
from scratchnet.layers.elementwise_loss import BCEWithLogitsLoss, L1Loss, MSELoss
from scratchnet.layers.norm import BatchNorm1d, BatchNorm2d
from scratchnet.layers.group_norm import GroupNorm, LayerNorm
from scratchnet.layers.conv import Conv2d
from scratchnet.layers.conv_transpose import ConvTranspose2d
from scratchnet.layers.pool import AvgPool2d, GlobalAvgPool2d
from scratchnet.layers.max_pool import MaxPool2d
from scratchnet.layers.resize import AdaptiveAvgPool2d, Upsample
from scratchnet.layers.dropout import Dropout
from scratchnet.fused.inference import fold_batch_norm
from scratchnet.plan import Plan, plan, wanting_dx
from scratchnet.sequential import Sequential
from scratchnet.branches import Add, Concat, Multiply, Residual
from scratchnet.kernels import use_kernels
from scratchnet.kernels.cpu.buffers import free_memory
from scratchnet.parallel import ranks
from scratchnet.parallel.threads import get_num_threads, set_num_threads
from scratchnet.training import schedule
from scratchnet.training.clip import clip_grad_norm_, clip_grad_value_
from scratchnet.training.optim import SGD, Adam, AdamW, RMSprop
from scratchnet.training.batches import Batches
from scratchnet.training.recorded import RecordedStep
from scratchnet.weights import load, save
from scratchnet.training.step import train_step
from scratchnet.summary import Summary, summary
from scratchnet.trace import trace
from scratchnet.gradcheck import GradcheckReport, GradientMismatch, gradcheck

__version__ = "0.1.0"
__all__ = [
    "DeviceError", "as_images", "as_matrix", "get_array_module", "to_device",
    "Module", "Parameter", "Sequential", "Plan", "plan", "fold_batch_norm",
    "Residual", "Add", "Concat", "Multiply",
    "Flatten", "Identity", "Linear", "ReLU", "ReLU6", "BatchNorm2d", "Conv2d",
    "GELU", "SiLU", "Sigmoid", "Softmax", "Tanh", "Hardsigmoid", "Hardswish", "LeakyReLU",
    "CrossEntropyLoss", "BCEWithLogitsLoss", "L1Loss", "MSELoss",
    "AvgPool2d", "GlobalAvgPool2d", "Dropout",
    "BatchNorm1d", "GroupNorm", "LayerNorm", "ConvTranspose2d", "MaxPool2d", "AdaptiveAvgPool2d", "Upsample",
    "ranks", "get_num_threads", "set_num_threads", "use_kernels", "use_tf32", "free_memory",
    "SGD", "Adam", "AdamW", "RMSprop", "clip_grad_norm_", "clip_grad_value_", "schedule", "wanting_dx",
    "Batches", "train_step", "RecordedStep", "Trainer", "Summary", "summary", "trace", "load", "save",
    "GradcheckReport", "GradientMismatch", "gradcheck",
]  # fmt: skip


def __getattr__(name):
    """`Trainer`, whose files are read when it is asked for: one of them is also run as a command."""
    if name == "Trainer":
        from scratchnet.training.trainer import Trainer

        return Trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
