"""PNG files of small pictures, with zlib alone (PNG specification, third edition, sections 5, 7.2 and 11.2)."""

import struct
import zlib

import numpy as np

COLOUR = {1: 0, 3: 2}  # channels -> PNG's type of colour: grey, or red, green and blue


def png(image):
    """The bytes of a PNG file.

    Args:
        image: (C, H, W) uint8, with one channel or three.

    Raises:
        ValueError: other channels, another dtype, or no pixel.
    """
    if image.ndim != 3 or image.dtype != np.uint8 or len(image) not in COLOUR or not image.size:
        raise ValueError(
            f"png: expected (1 or 3, H, W) of uint8, with at least one pixel, got {image.shape} of {image.dtype}"
        )
    channels, height, width = image.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # the first byte of each row: no filter
    rows[:, 1:] = image.transpose(1, 2, 0).reshape(height, -1)  # (C, H, W) -> (H, W·C)
    head = struct.pack(">IIBBBBB", width, height, 8, COLOUR[channels], 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
