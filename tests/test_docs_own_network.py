"""docs/own-network.md: its code runs, as one program, and prints what stands there."""

import contextlib
import io
import re
from pathlib import Path

import pytest

import scratchnet

PAGE = Path(scratchnet.__file__).parent.parent / "docs" / "own-network.md"
NUMBER = re.compile(r"\d+\.\d+|\d+")


def blocks(text):
    """The code blocks and what each prints, in order."""
    found = re.findall(r"```(\w+)\n(.*?)```\n", text, re.S)
    assert [kind for kind, _ in found] == ["python", "text"] * (len(found) // 2)
    return list(zip((code for _, code in found[::2]), (printed for _, printed in found[1::2]), strict=True))


def is_as_said(printed, said):
    """The same words, and numbers that differ by one in their last digit at most, as on another machine."""
    if NUMBER.sub("#", printed) != NUMBER.sub("#", said):
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(said), strict=True)
    return all(
        abs(float(a) - float(b)) <= 1.01 * 10 ** -len(b.partition(".")[2]) if "." in b else a == b for a, b in pairs
    )


def test_the_page_prints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    for code, said in blocks(PAGE.read_text(encoding="utf-8")):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(PAGE), "exec"), names)
        assert is_as_said(printed.getvalue(), said), printed.getvalue()
    assert [path.name for path in tmp_path.iterdir()] == ["moons.npz"]


@pytest.mark.parametrize(
    ("printed", "same"),
    [
        ("loss 0.31, 5 of 6", True),
        ("loss 0.30, 5 of 6", True),
        ("loss 0.33, 5 of 6", False),
        ("loss 0.31, 4 of 6", False),
    ]
    + [("gain 0.31, 5 of 6", False), ("loss 1.31, 5 of 6", False)],
)
def test_another_number_or_word_is_noticed(printed, same):
    assert is_as_said(printed, "loss 0.31, 5 of 6") == same
