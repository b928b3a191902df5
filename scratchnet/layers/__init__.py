"""The layers: for each its derivation, its forward and backward as plain functions, and the Module around them."""

from scratchnet.kernels import cpu, dense, depthwise, depthwise_norm  # noqa: F401 (importing a file registers its kernels)
