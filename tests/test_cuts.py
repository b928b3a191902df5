"""How work is cut: every part once, by its size alone, and nothing that a layer can tell from no cuts.

The layers' own tests for cut work are the rows of the conformance table with `cut`.
"""

import inspect
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scratchnet as sn
from scratchnet.parallel import cuts


@given(st.integers(1, 50), st.integers(1, 60))
def test_split(size, count):
    parts = cuts.split(size, count)
    assert [k for part in parts for k in range(size)[part]] == list(range(size))
    lengths = [part.stop - part.start for part in parts]
    assert len(parts) == min(size, count) and min(lengths) >= 1 and max(lengths) - min(lengths) <= 1


@given(st.integers(1, 9), st.integers(1, 300), st.sampled_from([64, 800, 4096]), st.integers(1, 20))
def test_slabs_hold_every_channel_once_and_fit_the_cache(channels, m, slab_bytes, passes):
    maps = np.zeros((channels, m))
    with mock.patch.multiple(cuts, SLAB_BYTES=slab_bytes, PARALLEL_WORK=1000):
        rows = cuts.slabs(maps, passes)
    assert [c for part in rows for c in range(channels)[part]] == list(range(channels))
    sizes = [part.stop - part.start for part in rows]
    if maps.size * passes * cuts.PASS <= 1000:
        assert sizes == [channels]
    else:
        assert len(rows) % 2 == 0 or len(rows) == channels  # an equal share for two cores
        assert max(sizes) == 1 or max(sizes) * maps[0].nbytes <= slab_bytes + maps[0].nbytes


@pytest.mark.parametrize(
    ("columns", "column_bytes", "panel_bytes", "widths"),
    [(slice(3, 10), 8, 24, [3, 3, 1]), (slice(0, 7), 8, 8, [2, 2, 2, 1]), (slice(0, 7), 8, 999, [7])],
)
def test_panels_are_as_wide_as_their_bytes_allow(columns, column_bytes, panel_bytes, widths):
    found = cuts.panels(columns, column_bytes, panel_bytes, least=2)
    assert [panel.stop - panel.start for panel in found] == widths
    assert [k for panel in found for k in range(99)[panel]] == list(range(99))[columns]


def test_nothing_that_cuts_asks_for_the_number_of_threads():
    assert "threads" not in cuts.__dict__ and "num_threads" not in inspect.getsource(cuts)


def test_large_work_is_cut_and_small_work_is_not():
    """With the sizes as they are."""
    assert len(cuts.slabs(np.empty((16, 64, 64, 16), np.float32), 5)) == 2
    assert len(cuts.slabs(np.empty((64, 64, 64, 16), np.float32), 5)) == 8
    assert cuts.slabs(np.empty((16, 16, 16, 16), np.float32), 5) == [slice(0, 16)]
    assert cuts.shares(8, cuts.PARALLEL_WORK // 8) == [slice(0, 8)]
    assert len(cuts.shares(8, cuts.PARALLEL_WORK // 8 + 1)) == cuts.SHARES


def test_a_batch_norm_that_is_cut_counts_its_batch_once():
    norm = sn.BatchNorm2d(16)
    x = sn.as_images(np.random.default_rng(0).standard_normal((16, 64, 64, 16)).astype(np.float32))
    counter = norm.num_batches_tracked
    norm.backward(norm(x))
    assert norm.num_batches_tracked == 1 and norm.num_batches_tracked is counter
    np.testing.assert_allclose(norm.running_mean, 0.1 * x.mean(axis=(0, 2, 3)), atol=1e-6)
