"""The layers: for each its derivation, its forward and backward as plain functions, and the Module around them."""

# Importing a file registers its kernels.
from scratchnet.kernels import cpu, dense, depthwise, depthwise_norm, gpu_bfloat16, gpu_conv, gpu_norm, gpu_training  # noqa: F401
