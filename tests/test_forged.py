"""Checkpoints with a right hash and a wrong header: each field of the wrong type or out of range ends in one line."""

import contextlib
import io
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import TINY, make_tiny, tiny

import train_cifar
from scratchnet.training import checkpoint
from scratchnet.training.checkpoint import CheckpointError
from scratchnet.training.schema import OBJECT, SHA256, TEXT, check, number, one_of, whole

SLOW = os.environ.get("SCRATCHNET_SLOW") == "1"
JSON = st.recursive(
    st.sampled_from([None, True, -1, 0, 1, 2, 40, 2**53 + 1, 2**70, 10**400, 0.5, -0.0, 1e300, "", "a\nb", "9" * 999])
    | st.integers(-5, 40) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
WAYS = (["--resume"], ["--resume-with-changes"], ["--resume-with-changes", "--epochs", "4"], ["--eval"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder to forge in, and what a run left in its last.npz in the middle of epoch 3."""
    folder = tmp_path_factory.mktemp("forged")
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        assert tiny(folder) == 0
        yield folder, checkpoint.load(folder / "last.previous.npz"), patch


def forged(header, data):
    """The header with one field, at any depth, replaced, removed or added."""
    header = {**header}
    inner = header
    while True:
        key = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        deeper = inner[key]
        if not (isinstance(deeper, dict | list) and deeper) or data.draw(st.booleans()):
            break
        inner[key] = deeper = {**deeper} if isinstance(deeper, dict) else [*deeper]
        inner = deeper
    if isinstance(inner, dict) and data.draw(st.booleans()):
        del inner[key]
    else:
        inner[data.draw(st.sampled_from([key, "changes"])) if isinstance(inner, dict) else key] = data.draw(JSON)
    return header


@settings(deadline=None, max_examples=3000 if SLOW else 60)
@given(st.data())
def test_a_forged_header_ends_in_one_line_or_changes_nothing_that_counts(made, data):
    folder, (arrays, header), _ = made
    changed = forged({key: value for key, value in header.items() if key != "checkpoint"}, data)
    way = data.draw(st.sampled_from(WAYS))
    checkpoint.save(folder / "last.npz", arrays, changed)
    flags = ["--eval", folder / "last.npz", "--sample"] if way == ["--eval"] else [*TINY, "--out", folder, *way]
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = train_cifar.main([*map(str, flags)])
    assert (code, len(errors.getvalue().splitlines())) in ((0, 0), (2, 1)), errors.getvalue()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epoch", 10**9, "'epoch' in the checkpoint's header is 1000000000, expected a whole number from 0 to 3"),
        ("batch", 4, "'batch' in .* is 4, expected a whole number from 0 to 3"),
        ("rows", [], r"'rows' in .* is \[\], expected a list of 2"),
        ("rows", [[1] * 8, [3] * 8], r"\[0\] of \[1\] of 'rows' in .* is 3, expected a whole number from 2 to 2"),
        ("best", {"epoch": 3, "val_acc": 0.5}, "'epoch' in 'best' in .* is 3, expected a whole number from 0 to 2"),
        ("best_sha256", None, "'best_sha256' in .* is None, expected a SHA-256"),
        ("loss", [0.5], r"'loss' in .* is \[0.5\], expected a list of 2"),
        ("generator", {"bit_generator": "PCG64"}, "generator state: expected the state of a PCG64"),
        ("config", 3, "'config' in .* is 3, expected an object"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_what_would_be_right(made, field, value, message, capsys):
    folder, (arrays, header), _ = made
    checkpoint.save(folder / "last.npz", arrays, header | {field: value})
    assert tiny(folder, "--resume") == 2
    with pytest.raises(CheckpointError, match=message):
        raise CheckpointError(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model/1.running_var", np.nan, "the checkpoint's model/1.running_var is not finite"),
        ("optimizer/step", -1, "the checkpoint's optimizer/step is -1, expected a count, at least 0"),
    ],
)
def test_arrays_that_cannot_be_of_a_run_are_refused(made, key, value, message, capsys):
    folder, (arrays, header), _ = made
    checkpoint.save(folder / "last.npz", arrays | {key: np.full_like(arrays[key], value)}, header)
    assert tiny(folder, "--resume") == 2 and message in capsys.readouterr().err


def test_a_width_that_the_file_is_too_small_for_takes_no_memory(made, tmp_path, capsys):
    _, (arrays, header), _ = made
    checkpoint.save(tmp_path / "a.npz", arrays, header | {"config": header["config"] | {"width": 90}})
    tracemalloc.start()
    assert train_cifar.main(["--eval", str(tmp_path / "a.npz")]) == 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.npz" in line and "width" in line
    assert peak < 2**23


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (whole(0, 3), [0, 3], [-1, 4, 1.0, True, None, "1", 10**400]),
        (number(0, 1), [0, 0.5, 1], [-0.1, 2, np.inf, np.nan, True, "0", None, 10**400]),
        (one_of("a", 1), ["a", 1], ["b", True, 1.0, None, [1]]),
        (TEXT, ["", "a b"], ["a\n", "\x1b", 1, "x" * 501]),
        (SHA256, ["0a" * 32], ["0A" * 32, "0a" * 31, None, "0a" * 32 + "\n"]),
        (OBJECT, [{}], [[], None]),
        ({"a": whole()}, [{"a": 1}, {"a": 1, "b": 2}], [{}, {"a": "1"}, [], None]),
        ([whole(), TEXT], [[1, "a"]], [[1], [1, "a", 2], ["a", 1], {}, None]),
    ],
)
def test_a_schema_takes_what_it_says_and_never_raises_anything_else(schema, good, bad):
    for value in good:
        check(value, schema, "x")
    for value in bad:
        with pytest.raises(CheckpointError, match="x"):
            check(value, schema, "x")
