"""Pictures from files, for a network that was trained on CIFAR-10 (needs Pillow: extra `plot`)."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np


class PictureError(ValueError):
    """A file is no picture that can be read, or Pillow is missing; the message says which."""


def read_pictures(paths: Iterable[str | Path], size: int = 32) -> np.ndarray:
    """PNG or JPEG files -> (N, 3, size, size) uint8.

    The middle square of each picture is resized, by averaging where it shrinks; what is transparent becomes black.

    Raises:
        PictureError: Pillow is not installed, a file is missing, or is not a picture.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise PictureError("reading pictures needs Pillow: pip install pillow") from None
    found = []
    for path in paths:
        try:
            with Image.open(path) as image:
                whole = ImageOps.exif_transpose(image).convert("RGB")  # a phone's picture says which way is up
        except OSError as error:
            reason = error.strerror or "it is no picture that Pillow can read"
            raise PictureError(f"{path} cannot be read: {reason}") from None
        except (Image.DecompressionBombError, ValueError, SyntaxError) as error:
            raise PictureError(f"{path} cannot be read: {error}") from None
        way = Image.Resampling.BOX if min(whole.size) > size else Image.Resampling.BILINEAR
        square = ImageOps.fit(whole, (size, size), way)
        found.append(np.asarray(square).transpose(2, 0, 1))  # (H, W, 3) -> (3, H, W)
    return np.stack(found)
