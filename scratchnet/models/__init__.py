"""Networks built from scratchnet's layers.

Their files are the folder `models/` of a checkout, and a wheel has them beside this one (setup.py). They have this name in
both; in a checkout `models` is another name for the same modules.
"""

from pathlib import Path

if not Path(__file__).with_name("mobilenetv2.py").exists():
    __path__ = [str(Path(__file__).parents[2] / "models")]

from functools import partial

from .mobilenetv2 import MobileNetV2
from .resnet import DEPTHS, ResNet
from .unet import UNet

resnet18, resnet34, resnet50 = (partial(ResNet, depth) for depth in (18, 34, 50))
resnet20 = partial(ResNet, 20, num_classes=10)


def from_checkpoint(path):
    """The MobileNetV2 or ResNet in a file, by the names of its arrays, in eval mode; raises CheckpointError as both do."""
    from scratchnet.weights import load

    return (ResNet if "fc.weight" in load(path) else MobileNetV2).from_checkpoint(path)


__all__ = ["DEPTHS", "MobileNetV2", "ResNet", "UNet", "from_checkpoint", "resnet18", "resnet20", "resnet34", "resnet50"]
