"""Batches: every picture once an epoch, the same bits from any starting point, one batch ahead, channel-major."""

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchnet.data.cifar10 import Dataset
from scratchnet.training import batches
from scratchnet.training.augment import normalise, random_crop_flip, resize, resize_matrix
from scratchnet.training.batches import Batches, split


def dataset(count, side=8, seed=0):
    """Random pictures whose label is their position."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), np.uint8)
    return Dataset(images, np.arange(count), ("any",), "random")


def is_channel_major(x):
    return x.transpose(1, 2, 3, 0).flags.c_contiguous


def same(some, others):
    return all(np.array_equal(x, y) and np.array_equal(a, b) for (x, a), (y, b) in zip(some, others, strict=True))


@given(st.integers(0, 60), st.floats(0, 0.99), st.integers(0, 2**40))
def test_split_holds_out_the_rounded_share_and_loses_or_doubles_no_picture(count, fraction, seed):
    whole = dataset(count)
    train, validation = split(whole, fraction, seed)
    assert len(validation.labels) == round(fraction * count)
    assert sorted([*train.labels, *validation.labels]) == list(range(count))
    for part in (train, validation):
        np.testing.assert_array_equal(part.images, whole.images[part.labels])
        assert (part.classes, part.name) == (whole.classes, whole.name)


def test_split_depends_on_the_seed_alone_and_spreads_over_the_set():
    first, again, other = (split(dataset(200), 0.1, seed)[1].labels for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(set(first) & set(other)) < 10
    assert 60 < first.mean() < 140


@pytest.mark.parametrize("fraction", [-0.1, 1, float("nan")])
def test_split_refuses_a_fraction_that_leaves_nothing_to_train_on(fraction):
    with pytest.raises(ValueError, match=f"at least 0 and less than 1, got {fraction}"):
        split(dataset(5), fraction, 0)


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


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.booleans(), st.booleans())
def test_an_epoch_has_every_picture_once_with_its_label(count, batch_size, shuffle, drop_last):
    drop_last = drop_last and batch_size <= count
    whole = dataset(count)
    b = Batches(whole, batch_size, seed=1, shuffle=shuffle, drop_last=drop_last, mean=(0,) * 3, std=(1 / 255,) * 3)
    epoch = list(b.epoch(2))
    labels = np.concatenate([labels for _, labels in epoch])
    assert len(epoch) == len(b) and labels.dtype == np.int64
    assert [len(x) for x, _ in epoch[:-1]] == [batch_size] * (len(b) - 1)
    assert len(epoch[-1][0]) == (batch_size if drop_last else count - batch_size * (len(b) - 1))
    assert len(set(labels)) == len(labels) == (count // batch_size * batch_size if drop_last else count)
    assert shuffle or (labels == np.arange(len(labels))).all()
    for x, labels in epoch:
        assert x.dtype == np.float32 and is_channel_major(x)
        np.testing.assert_allclose(x, whole.images[labels], atol=1e-4)


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(0, 6), st.booleans())
def test_an_epoch_entered_anywhere_by_a_new_object_gives_the_same_bits(k, start, augment):
    one, other = (Batches(dataset(21), 4, seed=7, augment=augment) for _ in range(2))
    list(one.epoch(k + 1))  # what was asked for before leaves no trace
    whole = list(one.epoch(k))
    assert len(whole) == 6
    assert same(whole[start:], other.epoch(k, start))


def test_two_epochs_read_in_turn_do_not_disturb_each_other():
    b = Batches(dataset(12), 4, seed=0, augment=True)
    in_turn = list(zip(b.epoch(0), b.epoch(1), strict=True))
    assert same([first for first, _ in in_turn], b.epoch(0))
    assert same([second for _, second in in_turn], b.epoch(1))


def test_alternating_flips_show_both_sides_of_every_picture_in_two_epochs():
    whole = dataset(21)
    b = Batches(
        whole, 4, seed=1, augment=True, padding=0, alternate=True, shuffle=False, mean=(0,) * 3, std=(1 / 255,) * 3
    )
    epochs = [np.concatenate([x for x, _ in b.epoch(k)]) for k in range(3)]
    as_they_are = [(epoch == whole.images).all(axis=(1, 2, 3)) for epoch in epochs]
    mirrored = [(epoch == whole.images[..., ::-1]).all(axis=(1, 2, 3)) for epoch in epochs]
    for k in range(3):
        assert (as_they_are[k] ^ mirrored[k]).all()
        np.testing.assert_array_equal(mirrored[k], mirrored[0] ^ (k % 2 == 1))
    assert 4 < mirrored[0].sum() < 17, "about half of them begin mirrored"


@pytest.mark.parametrize("augment", [False, True])
def test_seeds_and_epochs_and_batches_are_drawn_differently(augment):
    equal = Dataset(np.repeat(dataset(1).images, 64, 0), np.arange(64), ("any",), "equal")
    epochs = [list(Batches(equal, 32, seed=s, augment=augment).epoch(k)) for s, k in ((0, 0), (0, 1), (1, 0))]
    orders = {tuple(np.concatenate([labels for _, labels in epoch])) for epoch in epochs}
    pictures = {x.tobytes() for epoch in epochs for x, _ in epoch}
    assert len(orders) == 3
    assert len(pictures) == (6 if augment else 1)


def test_no_two_draws_share_a_random_stream(monkeypatch):
    whole, seeds, make = dataset(40), [], np.random.default_rng

    def record(seed):
        seeds.append(seed)
        return make(seed)

    monkeypatch.setattr(batches.np.random, "default_rng", record)
    train, _ = split(whole, 0.25, 3)
    b = Batches(train, 4, seed=3, augment=True, alternate=True)
    for k in range(3):
        list(b.epoch(k))
    assert len(seeds) == 2 + 3 * (1 + len(b))
    assert len({tuple(np.random.SeedSequence(seed).generate_state(4)) for seed in seeds}) == len(seeds)


def test_pictures_are_resized_as_asked():
    plain, large = (next(Batches(dataset(4), 4, seed=0, image_size=size).epoch(0))[0] for size in (None, 12))
    assert plain.shape == (4, 3, 8, 8) and large.shape == (4, 3, 12, 12)
    np.testing.assert_array_equal(large, resize(plain, 12))


def test_one_batch_is_prepared_ahead_while_the_caller_works_and_never_two(monkeypatch):
    prepare, ready, threads = Batches._batch, [threading.Event() for _ in range(6)], set()

    def record(self, order, k, b):
        threads.add(threading.current_thread())
        batch = prepare(self, order, k, b)
        ready[b].set()
        return batch

    monkeypatch.setattr(Batches, "_batch", record)
    for b, _ in enumerate(Batches(dataset(24), 4, seed=0).epoch(0)):
        assert b == 5 or ready[b + 1].wait(5)
        assert b >= 4 or not ready[b + 2].wait(0.02)
    assert len(threads - {threading.current_thread()}) == 1


def test_an_error_in_the_background_reaches_the_caller_at_its_batch(monkeypatch):
    prepare = Batches._batch

    def fail(self, order, k, b):
        if b == 2:
            raise MemoryError("batch 2")
        return prepare(self, order, k, b)

    monkeypatch.setattr(Batches, "_batch", fail)
    epoch = Batches(dataset(24), 4, seed=0).epoch(0)
    next(epoch), next(epoch)
    with pytest.raises(MemoryError, match="batch 2"):
        next(epoch)


def test_leaving_an_epoch_early_leaves_no_thread_behind():
    for _ in Batches(dataset(24), 4, seed=0).epoch(0):
        break
    epoch = Batches(dataset(24), 4, seed=0).epoch(0)
    next(epoch)
    epoch.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {}, "'random' is empty; it needs at least one picture"),
        (5, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (5, {"batch_size": 6, "drop_last": True}, "batch_size must be at most 5, the number of pictures, got 6"),
        (5, {"image_size": 0}, "image_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(count, options, message):
    with pytest.raises(ValueError, match=message):
        Batches(dataset(count), **{"batch_size": 4, "seed": 0, **options})


def test_labels_that_do_not_match_the_pictures_are_refused():
    with pytest.raises(ValueError, match="as many labels as pictures, got 4 and 5"):
        Batches(dataset(5)._replace(labels=np.arange(4)), 2, seed=0)


@pytest.mark.parametrize(("k", "start"), [(-1, 0), (0, -1), (0, 4)])
def test_a_position_outside_the_epoch_is_refused_at_once(k, start):
    with pytest.raises(ValueError, match=f"epoch must be at least 0 and start 0 to 3, got {k} and {start}"):
        Batches(dataset(5), 2, seed=0).epoch(k, start)
