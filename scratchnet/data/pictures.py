"""Pictures from files, to train on or to say what they show (needs Pillow: extra `plot`); imagenet.py for others."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from scratchnet.data.files import one_line, open_regular

MAX_PIXELS = 1 << 26  # 67 million: decoded and converted they take up to 0.8 GB


class PictureError(ValueError):
    """A file is no picture that can be read, or Pillow is missing; the message is one line that says which."""


def middle_square(image: Any, size: int) -> Any:
    """The middle square of a picture of Pillow's, resized, by averaging where it shrinks."""
    from PIL import Image, ImageOps

    way = Image.Resampling.BOX if min(image.size) > size else Image.Resampling.BILINEAR
    return ImageOps.fit(image, (size, size), way)


def require_pillow() -> None:
    """Raise PictureError unless Pillow is installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise PictureError("reading pictures needs Pillow: pip install pillow") from None


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings about what is then read all the same, such as a date that is none.

    Warnings are a matter of the whole process: where several threads read, this goes around all of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_picture(
    path: str | os.PathLike[str], size: int = 32, shape: Callable[[Any, int], Any] = middle_square
) -> np.ndarray:
    """A PNG or JPEG file -> (3, size, size) uint8, RGB.

    What is transparent is laid on black, of 16 bits the upper 8 count, and a phone's picture is turned the way up that it
    says; of that, `shape` makes a square. No other format is tried: Pillow knows dozens, starts another program for one
    of them, and each is a way in for whoever made the file.

    Raises:
        PictureError: Pillow is not installed, or the file cannot be read, is no such picture, is damaged, or has more
            than `MAX_PIXELS` pixels.
    """
    with quiet():
        return decode(path, size, shape)


def decode(path: str | os.PathLike[str], size: int, shape: Callable[[Any, int], Any] = middle_square) -> np.ndarray:
    """`read_picture`, for threads: they stand within one `quiet`."""
    require_pillow()
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with open_regular(path) as file:
            image: Any = Image.open(file, formats=("PNG", "JPEG"))
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}×{image.height} pixels, more than {MAX_PIXELS:,}")
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255
                image = Image.fromarray(((np.asarray(image, np.int32) + 128) // 257).astype(np.uint8))
            if image.mode.endswith("A") or "transparency" in image.info:
                image = image.convert("RGBA").convert("RGBa")  # colours times opacity: on black
            elif image.mode != "RGB":
                image = image.convert("RGB")
            square = shape(image, size)
    except UnidentifiedImageError:
        reason = "it is no PNG or JPEG picture"
    except OSError as error:
        reason = one_line(error)
    except MemoryError:
        reason = "it does not fit into the memory of this machine"
    except Exception as error:  # there is no list of what a damaged picture makes Pillow raise
        reason = one_line(error)
    else:
        return np.asarray(square)[..., :3].transpose(2, 0, 1)  # (H, W, 3 or 4) -> (3, H, W)
    raise PictureError(f"{path} cannot be read: {reason}")


def read_pictures(paths: Iterable[str | os.PathLike[str]], size: int = 32) -> np.ndarray:
    """`read_picture` of N files -> (N, 3, size, size) uint8."""
    return np.array([read_picture(path, size) for path in paths], np.uint8).reshape(-1, 3, size, size)
