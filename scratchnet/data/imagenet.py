"""Pictures as networks trained on ImageNet take them, and the names of its 1,000 classes.

As in torchvision's presets for its first MobileNetV2 and ResNet weights: the shorter side becomes 256 pixels, the middle
square of 224 is cut out, 0 … 255 becomes 0 … 1, then each channel has ImageNet's mean taken away and is divided by its
deviation. The resizing is Pillow's, by a bilinear filter over all pixels that a new one covers.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from scratchnet.data.pictures import read_picture

RESIZE, CROP = 256, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# As torchvision names them, in the order of the logits; each name is there once, which ImageNet's first words are not.
CLASSES = tuple(Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines())


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """A PNG or JPEG file -> x of shape (1, 3, 224, 224), float32, normalised; raises PictureError."""
    return normalise(read_picture(path, CROP, resize_and_crop)[None])


def resize_and_crop(image: Any, size: int) -> Any:
    """The middle square of `size` pixels of a picture of Pillow's whose shorter side has been made `RESIZE`."""
    width, height = image.size
    short = min(width, height)
    width, height = (RESIZE if side == short else RESIZE * side // short for side in (width, height))
    left, top = (round((side - size) / 2) for side in (width, height))
    image = image.resize((width, height), 2)  # Image.Resampling.BILINEAR
    return image.crop((left, top, left + size, top + size))


def normalise(images: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) uint8 -> float32."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    return (images.astype(np.float32) / np.float32(255) - mean) / std
