"""What is done to pictures: crops of their reflection, normalised by the formula, resized as PyTorch does it."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import is_channel_major
from test_compiled import needs_numba

from scratchnet import kernels
from scratchnet.device import Kind
from scratchnet.training.augment import (
    affine,
    draw_crop_flip,
    normalise,
    random_crop_flip,
    resize,
    resize_matrix,
    take_batch,
)


@given(st.integers(0, 4), st.integers(1, 3), st.integers(2, 6), st.integers(2, 6), st.data())
def test_every_augmented_picture_is_a_crop_of_its_reflection_padded_self_or_mirror_image(n, c, h, w, data):
    padding = data.draw(st.integers(0, min(h, w) - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    images = rng.integers(0, 256, (n, c, h, w), np.uint8)
    before = images.copy()
    out = random_crop_flip(images, rng, padding)
    assert out.shape == images.shape and out.dtype == np.uint8 and is_channel_major(out)
    np.testing.assert_array_equal(images, before)
    for picture, result in zip(images, out, strict=True):
        padded = np.pad(picture, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
        shifts = range(2 * padding + 1)
        crops = [side[:, y : y + h, x : x + w] for side in (padded, padded[:, :, ::-1]) for y in shifts for x in shifts]
        assert any(np.array_equal(result, crop) for crop in crops)


def test_both_mirror_images_and_all_shifts_are_about_equally_frequent():
    picture = np.arange(30, dtype=np.uint8).reshape(1, 1, 5, 6)
    out = random_crop_flip(np.repeat(picture, 9000, 0), np.random.default_rng(0), padding=1)
    found, frequency = np.unique(out.reshape(9000, -1), axis=0, return_counts=True)
    assert len(found) == 18  # 2 mirror images, 3 shifts down, 3 to the right
    assert 400 < frequency.min() and frequency.max() < 600


@pytest.mark.parametrize("padding", [-1, 5])
def test_padding_beyond_what_can_be_reflected_is_refused(padding):
    with pytest.raises(ValueError, match=f"padding must be 0 to 4 for 5×6 pictures, got {padding}"):
        random_crop_flip(np.zeros((1, 3, 5, 6), np.uint8), np.random.default_rng(0), padding)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 1, 2), (3, 2, 1, 0)])
def test_normalise_is_its_formula_in_float32_for_any_memory_order(order):
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 6), np.uint8)
    stored = np.ascontiguousarray(images.transpose(np.argsort(order))).transpose(order)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.25, 0.3)
    out = normalise(stored, mean, std)
    expected = (images / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert out.dtype == np.float32 and is_channel_major(out)
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_normalise_needs_no_memory_beyond_its_result():
    images = np.zeros((256, 3, 32, 32), np.uint8)
    tracemalloc.start()
    out = normalise(images, (0.5,) * 3, (0.5,) * 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < out.nbytes + 500_000


@needs_numba
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@given(st.integers(1, 9), st.integers(1, 3), st.integers(2, 7), st.integers(2, 7), st.data())
def test_one_compiled_pass_has_the_bits_of_the_two(dtype, n, c, h, w, data):
    padding, rng = data.draw(st.integers(0, min(h, w) - 1)), np.random.default_rng(data.draw(st.integers(0, 99)))
    images = rng.integers(0, 256, (5, c, h, w), np.uint8)
    images = images if dtype == np.uint8 else (images / 255).astype(dtype)
    mean, std, chosen = rng.uniform(0.1, 0.9, c), rng.uniform(0.1, 0.4, c), rng.integers(0, 5, n)
    draws = np.zeros((4, n), np.int32)
    draws[0], seed = chosen, data.draw(st.integers(0, 99))
    draws[1], draws[2:] = draw_crop_flip((n, c, h, w), np.random.default_rng(seed), padding, None)
    kernel = kernels.choose(kernels.Pair(take_batch), Kind("cpu", np.dtype(dtype).name))
    assert kernel.version == "compiled"
    got = kernel.forward(images, draws, *affine(mean, std, dtype))
    want = normalise(random_crop_flip(images[chosen], np.random.default_rng(seed), padding), mean, std)
    assert got.dtype == np.float32 and is_channel_major(got)
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("size", [1, 5, 7, 8, 21])
def test_resize_is_pytorchs_bilinear_interpolation(size):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 7))
    peer = torch.nn.functional.interpolate(torch.tensor(x), size=(size, size), mode="bilinear").numpy()
    np.testing.assert_allclose(resize(x, size), peer, atol=1e-12)
    single = resize(x.astype(np.float32), size)
    assert single.dtype == np.float32 and is_channel_major(single)
    np.testing.assert_allclose(single, peer, atol=1e-6)


def test_resize_matrix_doubles_a_line_by_quarters():
    expected = [[1, 0, 0], [0.75, 0.25, 0], [0.25, 0.75, 0], [0, 0.75, 0.25], [0, 0.25, 0.75], [0, 0, 1]]
    np.testing.assert_allclose(resize_matrix(3, 6), expected, atol=1e-15)
    np.testing.assert_array_equal(resize_matrix(4, 4), np.eye(4))
