"""Pictures from files."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from scratchnet.data.pictures import MAX_PIXELS, PictureError, read_picture, read_pictures


@pytest.fixture
def image():
    return pytest.importorskip("PIL.Image")


def test_a_picture_of_the_right_size_comes_back_by_channels(image, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    image.fromarray(pixels).save(tmp_path / "a.png")
    image.fromarray(pixels[:, ::-1]).save(tmp_path / "b.png")
    got = read_pictures([tmp_path / "a.png", tmp_path / "b.png"])
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, np.stack([pixels, pixels[:, ::-1]]).transpose(0, 3, 1, 2))


def test_the_middle_square_is_averaged_down(image, tmp_path):
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 32:96] = [[[200, 100, 50]]]
    pixels[::2, 32:96] = [[[100, 50, 0]]]
    image.fromarray(pixels).save(tmp_path / "wide.png")
    got = read_pictures([tmp_path / "wide.png"])[0]
    np.testing.assert_array_equal(got, np.broadcast_to(np.array([150, 75, 25])[:, None, None], (3, 32, 32)))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("size", [(20, 70), (32, 32), (5, 9)])
def test_any_mode_and_size_is_read_and_so_is_jpeg(image, tmp_path, mode, size):
    file = tmp_path / ("x.jpg" if mode in ("L", "CMYK") else "x.png")
    image.new(mode, size, 0).save(file)
    assert read_pictures([file], 24).shape == (1, 3, 24, 24)


def png(shape, depth, colour, data):
    """A PNG file as bytes, whatever it claims: height and width, bits, the kind of its pixels, big-endian rows."""
    rows = b"".join(b"\0" + row.tobytes() for row in data)
    head = struct.pack(">IIBBBBB", shape[1], shape[0], depth, colour, 0, 0, 0)
    chunks = (b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    pieces = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_become_8(image, tmp_path, colour, channels):
    pixels = np.random.default_rng(0).integers(0, 65536, (32, 32, channels), np.uint16)
    pixels[0, 0], pixels[0, 1] = 0, 65535
    if channels % 2 == 0:
        pixels[:, :, -1] = 65535  # opaque
    (tmp_path / "deep.png").write_bytes(png((32, 32), 16, colour, pixels.astype(">u2")))
    got = read_picture(tmp_path / "deep.png")
    want = np.broadcast_to(pixels[:, :, : max(1, channels - 1 + channels % 2)] / 257, (32, 32, 3)).transpose(2, 0, 1)
    assert got[:, 0, 0].tolist() == [0, 0, 0] and got[:, 0, 1].tolist() == [255, 255, 255]
    np.testing.assert_allclose(got, want, rtol=0, atol=0.5 + (colour != 0) / 2)  # Pillow cuts colours off


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_laid_on_black(image, tmp_path, mode):
    picture = image.new("RGBA", (40, 40), (200, 200, 200, 0))
    picture.paste((100, 100, 100, 255), (0, 0, 20, 40))
    picture.convert(mode).save(tmp_path / "half.png")
    got = read_picture(tmp_path / "half.png", 40)
    assert (got[:, :, :20] == 100).all() and (got[:, :, 20:] == 0).all()


def test_a_phones_picture_is_turned_the_way_up_that_it_says(image, tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    exif = image.Exif()
    exif[0x0112] = 6  # to be turned by 90° to the right
    image.fromarray(pixels).save(tmp_path / "phone.jpg", exif=exif, quality=100)
    got = read_picture(tmp_path / "phone.jpg")
    assert got[:, :, 16:].min() > 250 and got[:, :, :16].max() < 5


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "DDS", "EPS"])
def test_no_other_format_is_opened(image, tmp_path, monkeypatch, format):
    image.new("RGB", (16, 16)).save(tmp_path / "cat.png", format)
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(PictureError, match=r"cat\.png cannot be read: it is no PNG or JPEG picture$"):
        read_picture(tmp_path / "cat.png")


@pytest.mark.parametrize("shape", [(1 << 13, (1 << 13) + 1), (1, MAX_PIXELS + 1), (65535, 65535)])
def test_a_small_file_with_many_pixels_is_refused_before_they_are_decoded(image, tmp_path, monkeypatch, shape):
    (tmp_path / "bomb.png").write_bytes(png(shape, 8, 2, [np.zeros(1000, np.uint8)]))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(PictureError, match=r"bomb\.png cannot be read: .*(pixels, more than 67,108,864|bomb)"):
        read_picture(tmp_path / "bomb.png")


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), NotImplementedError("a\nb"), IndexError(), EOFError()])
def test_whatever_pillow_raises_is_one_line_with_the_name(image, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(PictureError, match=r"^\S+a\.png cannot be read: [^\n]+$"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["text.png", "torn.png", "absent.png", ".", "pipe"])
def test_what_is_no_picture_is_named(image, tmp_path, name):
    (tmp_path / "text.png").write_text("not a picture")
    os.mkfifo(tmp_path / "pipe")
    image.new("RGB", (40, 40)).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    with pytest.raises(PictureError, match="cannot be read: "):
        read_pictures([tmp_path / "whole.png", tmp_path / name])


def test_without_pillow_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(PictureError, match="needs Pillow: pip install pillow$"):
        read_pictures([tmp_path / "a.png"])
    assert read_pictures([]).shape == (0, 3, 32, 32)
