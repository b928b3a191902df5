"""Batches: every picture once an epoch, the same bits from any starting point, one batch ahead, channel-major."""

import threading

import numpy as np
import pytest
from conformance import CPU_KERNELS
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import is_channel_major

import scratchnet as sn
from scratchnet.array import to_device
from scratchnet.data.cifar10 import MEAN, STD
from scratchnet.data.dataset import Dataset
from scratchnet.parallel import ranks
from scratchnet.training import batches
from scratchnet.training.augment import resize
from scratchnet.training.batches import Batches, split


def dataset(count, side=8, seed=0):
    """Random pictures whose label is their position."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), np.uint8)
    return Dataset(images, np.arange(count), ("any",), "random")


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


@pytest.mark.parametrize("dtype", ["uint8", "float16", ">f4", "float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"augment": True, "padding": 2}, {"augment": True, "alternate": True}])
def test_every_kernel_makes_the_same_bits(dtype, options):
    whole = dataset(20)
    images = whole.images if dtype == "uint8" else (whole.images / 255).astype(dtype)
    for stored in (images, np.asfortranarray(images)):
        epochs = []
        for which in (False, *CPU_KERNELS):
            with sn.use_kernels(which):
                epochs.append(list(Batches(whole._replace(images=stored), 6, seed=3, **options).epoch(1)))
        assert all(same(epoch, epochs[0]) and len(epoch) == 4 for epoch in epochs)
        assert all(x.dtype == np.float32 and is_channel_major(x) for epoch in epochs for x, _ in epoch)


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


@pytest.mark.parametrize("device", ["cpu", "plain", "cuda"])
@pytest.mark.parametrize("options", [{}, {"augment": True}, {"augment": True, "alternate": True, "image_size": 12}])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_ranks_share_the_batches_of_one(standin, monkeypatch, device, options, count):
    sn.use_kernels(device != "plain")
    b = Batches(dataset(17), 5, seed=3, device="cuda" if device == "cuda" else "cpu", **options)
    whole = [tuple(to_device(array, "cpu") for array in batch) for batch in b.epoch(1)]
    shares = []
    monkeypatch.setattr(ranks, "size", count)
    for rank in range(count):
        monkeypatch.setattr(ranks, "rank", rank)
        shares.append([])
        for batch in b.epoch(1):
            with ranks.alone():  # while the next one is prepared
                shares[-1].append(tuple(to_device(array, "cpu") for array in batch))
    for batch, *parts in zip(whole, *shares, strict=True):
        x, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        np.testing.assert_array_equal(labels, batch[1])
        # to resize is a product of matrices, and BLAS adds in an order that depends on their size
        np.testing.assert_allclose(x, batch[0], rtol=0, atol=2e-6 if "image_size" in options else 0)
        assert max(len(x) for x, _ in parts) - min(len(x) for x, _ in parts) <= 1
        assert all(x.dtype == batch[0].dtype and x.shape[1:] == batch[0].shape[1:] for x, _ in parts)
        assert all(is_channel_major(x) for x, _ in parts if len(x))


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
        (5, {"mean": MEAN, "std": (0.2, 0, 0.2)}, r"std must be above 0 in every channel, got \(0.2, 0, 0.2\)"),
        (5, {"image_size": 0}, "image_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(count, options, message):
    with pytest.raises(ValueError, match=message):
        Batches(dataset(count), **{"batch_size": 4, "seed": 0, **options})


FLOATS = (dataset(5).images / 255).astype(np.float32)


@pytest.mark.parametrize("call", [lambda data: Batches(data, 2, seed=0), lambda data: split(data, 0.5, 0)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.arange(4)}, "as many labels as inputs, got 4 and 5"),
        ({"labels": np.zeros((5, 10), int)}, r"labels must be \(N,\) integers, or floats .*, got \(5, 10\) int64"),
        ({"labels": np.float32(1)}, r"labels must be \(N,\) integers, or floats .*, got \(\) float32"),
        ({"labels": list("abcde")}, r"labels must be \(N,\) integers, or floats .*, got \(5,\) <U1"),
        ({"labels": [0.0, 1, np.inf, 3, np.nan]}, "labels must be finite, got 2 numbers that are infinite or NaN"),
        ({"images": FLOATS * np.nan}, "inputs must be finite, got 960 numbers that are infinite or NaN"),
        ({"images": dataset(5).images.astype(int)}, r"inputs must be .* floats or uint8, got \(5, 3, 8, 8\) int64"),
        ({"images": np.zeros(5)}, r"inputs must be \(N, C, H, W\) or \(N, F\), floats or uint8, got \(5,\) float64"),
    ],
)
def test_pictures_and_labels_of_another_kind_are_refused(call, change, message):
    with pytest.raises(ValueError, match=message):
        call(dataset(5)._replace(**change))


@pytest.mark.parametrize("channels", [1, 4])
def test_as_many_means_as_channels_are_asked_for(channels):
    data = dataset(5)._replace(images=np.zeros((5, channels, 8, 8), np.uint8))
    numbers = f"{channels} channels need {channels} numbers each in mean and std"
    with pytest.raises(ValueError, match=f"{numbers}, got 3 and 3"):
        Batches(data, 2, mean=MEAN, std=STD)
    assert next(Batches(data, 2, mean=[0] * channels, std=[1] * channels).epoch(0))[0].shape[1] == channels
    assert next(Batches(data, 2).epoch(0))[0].shape[1] == channels


@pytest.mark.parametrize(("images", "range"), [(FLOATS * 255, "0 to 25"), (FLOATS - 0.5, "-0.5 to 1")])
def test_floats_outside_0_to_1_are_not_normalised_by_numbers_of_that_range(images, range):
    message = f"pictures of floats must be numbers from 0 to 1, got {range}.*: scale them, or .* leave mean and std out"
    with pytest.raises(ValueError, match=message):
        Batches((images, np.arange(5)), 2, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="mean and std belong together"):
        Batches((images, np.arange(5)), 2, mean=MEAN)
    ((x, _),) = Batches((images, np.arange(5)), 5, shuffle=False).epoch(0)
    np.testing.assert_array_equal(x, images.astype(np.float32))


@pytest.mark.parametrize("given", [None, 3, dataset(5).images, ("a",), (FLOATS, np.arange(5), 0)])
@pytest.mark.parametrize("call", [lambda data: Batches(data, 2), lambda data: split(data, 0.5, 0)])
def test_what_is_neither_a_data_set_nor_a_pair_is_refused(call, given):
    with pytest.raises(ValueError, match=r"expected a Dataset or a pair \(inputs, labels\), got "):
        call(given)


@pytest.mark.parametrize("device", ["cpu", "plain", "cuda"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("shape", [(2,), (5, 7), (1, 4, 6), (5, 4, 6), (2, 3, 4, 5)])
@pytest.mark.parametrize("targets", [None, (), (3,), (2, 2)])
def test_arrays_of_ones_own_come_as_they_are(standin, device, dtype, shape, targets):
    sn.use_kernels(device != "plain")
    rng = np.random.default_rng(0)
    inputs = (100 * rng.standard_normal((11, *shape))).astype(dtype)
    labels = np.arange(11) if targets is None else rng.standard_normal((11, *targets))
    before = inputs.copy(), labels.copy()
    batches = Batches((inputs, labels), 4, seed=1, device="cuda" if device == "cuda" else "cpu")
    order = np.random.default_rng((1, 0)).permutation(11)
    for b, batch in enumerate(batches.epoch(0)):
        x, y = (to_device(array, "cpu") for array in batch)
        chosen = order[4 * b : 4 * b + 4]
        assert x.dtype == np.float32 and y.dtype == (np.int64 if targets is None else np.float32)
        assert x.transpose(*range(1, x.ndim), 0).flags.c_contiguous, "channel-major"
        np.testing.assert_array_equal(y, labels[chosen].astype(y.dtype))
        if dtype == "uint8":
            np.testing.assert_allclose(x, inputs[chosen] / 255, rtol=0, atol=1e-7)
        else:
            np.testing.assert_array_equal(x, inputs[chosen].astype(np.float32))
    assert same([(inputs, labels)], [before])


def test_each_loop_is_the_next_epoch_and_a_loop_that_was_left_counts():
    batches, same_again = (Batches((FLOATS, np.arange(5)), 2, seed=3, augment=True, padding=2) for _ in range(2))
    loops = [list(batches) for _ in range(2)]
    for _ in batches:
        break
    assert batches.next_epoch == 3
    for k, loop in enumerate([*loops, None, list(batches)]):
        assert loop is None or same(loop, same_again.epoch(k)), k
    same_again.next_epoch = 1
    assert same(same_again, loops[1])


def test_a_pair_is_split_into_pairs():
    inputs, targets = np.arange(20.0).reshape(10, 2), np.arange(10.0)[:, None]
    (x, y), (x_held, y_held) = split((inputs, targets), 0.3, 0)
    assert len(x) == len(y) == 7 and len(x_held) == len(y_held) == 3 and y.shape == (7, 1)
    np.testing.assert_array_equal(x[:, :1], 2 * y)
    np.testing.assert_array_equal(np.sort(np.concatenate([y, y_held]), axis=0), targets)


@pytest.mark.parametrize("option", [{"augment": True}, {"image_size": 4}, {"mean": [0, 0]}, {"std": [1, 1]}])
def test_what_is_for_pictures_is_refused_for_other_inputs(option):
    with pytest.raises(ValueError, match=rf"{next(iter(option))} is for pictures \(N, C, H, W\), got inputs \(5, 2\)"):
        Batches((np.zeros((5, 2)), np.arange(5)), 2, **option)


def test_pictures_are_not_moved_without_targets_that_have_a_place_nor_further_than_they_are_wide():
    with pytest.raises(
        ValueError, match=r"augment would move the pictures and not their labels, which are \(5, 8, 8\)"
    ):
        Batches((FLOATS, np.zeros((5, 8, 8))), 2, augment=True)
    with pytest.raises(ValueError, match="padding must be 0 to 7 for 8×8 pictures, got 8"):
        Batches((FLOATS, np.arange(5)), 2, augment=True, padding=8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_floats_from_0_to_1_and_labels_in_a_list_give_the_batches_of_the_bytes(standin, dtype, device):
    whole = dataset(11)
    floats = whole._replace(images=(whole.images / 255).astype(dtype), labels=whole.labels.tolist())
    options = {"seed": 3, "augment": True, "image_size": 9, "device": device, "mean": MEAN, "std": STD}
    for pair in zip(Batches(whole, 4, **options).epoch(0), Batches(floats, 4, **options).epoch(0), strict=True):
        (want, labels), (got, from_list) = (tuple(to_device(array, "cpu") for array in batch) for batch in pair)
        assert got.dtype == np.float32 and from_list.dtype == np.int64 and is_channel_major(got)
        np.testing.assert_allclose(got, want, rtol=0, atol=4e-3 if dtype == np.float16 else 2e-6)
        np.testing.assert_array_equal(labels, from_list)
    np.testing.assert_array_equal(split(floats, 0.3, 0)[1].labels, split(whole, 0.3, 0)[1].labels)


@pytest.mark.parametrize(("k", "start"), [(-1, 0), (0, -1), (0, 4)])
def test_a_position_outside_the_epoch_is_refused_at_once(k, start):
    with pytest.raises(ValueError, match=f"epoch must be at least 0 and start 0 to 3, got {k} and {start}"):
        Batches(dataset(5), 2, seed=0).epoch(k, start)
