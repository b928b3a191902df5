"""Networks built from scratchnet's layers."""

from models.mobilenetv2 import MobileNetV2

__all__ = ["MobileNetV2"]
