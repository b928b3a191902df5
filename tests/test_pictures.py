"""Pictures from files."""

import builtins

import numpy as np
import pytest

from scratchnet.data.pictures import PictureError, read_pictures


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


def test_what_is_no_picture_is_named(image, tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    image.new("RGB", (40, 40)).save(tmp_path / "whole.png")
    torn = (tmp_path / "whole.png").read_bytes()[:60]
    (tmp_path / "torn.png").write_bytes(torn)
    for name in ("text.png", "torn.png", "absent.png", "."):
        with pytest.raises(PictureError, match="cannot be read: "):
            read_pictures([tmp_path / "whole.png", tmp_path / name])


def test_without_pillow_one_line_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "PIL":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PictureError, match="pip install pillow"):
        read_pictures([tmp_path / "a.png"])
