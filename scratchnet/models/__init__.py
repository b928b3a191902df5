"""Networks built from scratchnet's layers.

Their files are the folder `models/` of a checkout, and a wheel has them beside this one (setup.py). They have this name in
both; in a checkout `models` is another name for the same modules.
"""

from pathlib import Path

if not Path(__file__).with_name("mobilenetv2.py").exists():
    __path__ = [str(Path(__file__).parents[2] / "models")]

from functools import partial
from os import PathLike

from .mobilenetv2 import MobileNetV2
from .network import Network, build
from .resnet import DEPTHS, ResNet
from .unet import UNet

resnet18, resnet34, resnet50 = (partial(ResNet, depth) for depth in (18, 34, 50))
resnet20 = partial(ResNet, 20, num_classes=10)


NETWORKS: tuple[type[Network], ...] = MobileNetV2, ResNet, UNet


def from_checkpoint(path: str | PathLike[str]) -> Network:
    """The network in a file, whichever of `NETWORKS` it is, as `Network.from_checkpoint`.

    Raises:
        CheckpointError: the file cannot be read, or holds none of them; one sentence that names it.
    """
    return build(path, NETWORKS)


__all__ = [
    "DEPTHS", "NETWORKS", "MobileNetV2", "ResNet", "UNet", "from_checkpoint",
    "resnet18", "resnet20", "resnet34", "resnet50",
]  # fmt: skip
