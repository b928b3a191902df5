"""The CPU's matrix products: cut into chunks of columns where that pays, and the same product however they are cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, rngs

from scratchnet.kernels.cpu import products
from scratchnet.parallel import cuts


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(products, "CHUNK", 16)
    monkeypatch.setattr(cuts, "PARALLEL_WORK", 100)


@pytest.mark.parametrize(
    ("multiply_adds", "columns", "count"),
    [(1, 40, 1), (4, 25, 1), (4, 26, 2), (3, 40, 2), (3, 100, 6), (3, 110, 8), (3, 170, 12), (20, 10, 2), (200, 1, 1)],
)
def test_an_even_number_of_chunks_from_so_much_work_on(multiply_adds, columns, count):
    chunks = products._chunks(multiply_adds, columns)
    assert len(chunks) == count
    assert [column for chunk in chunks for column in range(columns)[chunk]] == list(range(columns))


@given(rngs(), st.integers(1, 6), st.integers(1, 7), st.integers(1, 150))
def test_a_product_in_chunks_is_the_product(rng, rows, inner, columns):
    a, b, c = normal(rng, (rows, inner)), normal(rng, (inner, columns)), normal(rng, (rows, columns))
    out = np.empty((rows, columns))
    products.matmul(a, b, out)
    np.testing.assert_allclose(out, a @ b, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(products.matmul_transposed(c, b), c @ b.T, rtol=1e-12, atol=1e-12)
