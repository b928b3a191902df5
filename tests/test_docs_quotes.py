"""What pages quote from the repository (docs/making/quotes.py): the lines that are asked for, or an error, never others."""

import pytest
from quotes import QUOTE, ROOT, RUN, joined, quote

SOURCE = '''\
"""A layer.

    y  = 2 x         a number, doubled, which is what this layer
                              is for                              (TWO.1)
    dx = 2 dy        (TWO.2)
"""

TABLE = [
    1,
    2,
]


def forward(x):
    """Compute (TWO.1)."""

    y = times(  # (TWO.1)
        2,
        x,
    )
    return y


class Two:
    """Doubles."""

    @property
    def gain(self):
        """Always 2."""
        return 2

    def backward(self, dy):  # (TWO.2)
        if dy is None:
            return None
        return 2 * dy  # walks (TWO.2) back
'''
FORWARD = "def forward(x):\n    y = times(  # (TWO.1)\n        2,\n        x,\n    )\n    return y"
KERNEL = """\
// (TWO.1) on a card.
template <class T>
__global__ void two(const T* x, T* y) {
  if (x) { y[0] = 2 * x[0]; }
}

__device__ inline int one() { return 1; }
"""
PAGE = "# Numbers\n\n| run | loss |\n| --- | --- |\n| one | 0.5 |\n| two | 0.7 |\n\nIn all 0.6.\n"


@pytest.fixture
def root(tmp_path):
    for name, text in (("layer.py", SOURCE), ("kernel.cu", KERNEL), ("page.md", PAGE)):
        (tmp_path / "scratchnet").mkdir(exist_ok=True)
        (tmp_path / "scratchnet" / name).write_text(text, encoding="utf-8")
    return tmp_path


def texts(kind, arguments, root):
    return ["\n".join(line for _, line in each.lines) for each in quote(kind, arguments, root)]


@pytest.mark.parametrize(
    ("kind", "arguments", "expected", "first"),
    [
        ("code", "scratchnet/layer.py forward", FORWARD, 14),
        ("code", "scratchnet/layer.py Two.gain", "@property\ndef gain(self):\n    return 2", 27),
        ("code", "scratchnet/layer.py TABLE", "TABLE = [\n    1,\n    2,\n]", 8),
        ("code", "scratchnet/kernel.cu two", KERNEL.split("\n\n")[0].partition("\n")[2], 2),
        ("code", "scratchnet/kernel.cu one", "__device__ inline int one() { return 1; }", 7),
        ("lines", "TWO.1", "y = times(  # (TWO.1)\n    2,\n    x,\n)", 17),
        ("lines", "TWO.2", "def backward(self, dy):  # (TWO.2)\nreturn 2 * dy  # walks (TWO.2) back", 32),
        ("formula", "TWO.2", "dx = 2 dy        (TWO.2)", 5),
        ("result", 'scratchnet/page.md "two |"', "| run | loss |\n| --- | --- |\n| two | 0.7 |", 3),
        ("result", "scratchnet/page.md 'In all'", "In all 0.6.", 8),
        ("result", "scratchnet/page.md 0.7 'In all'", "| two | 0.7 |\nIn all 0.6.", 6),
    ],
)  # fmt: skip
def test_what_is_asked_for(root, kind, arguments, expected, first):
    assert texts(kind, arguments, root) == [expected]
    assert quote(kind, arguments, root)[0].lines[0][0] == first


def test_a_formula_over_two_lines_is_quoted_whole(root):
    assert texts("formula", "TWO.1", root)[0].splitlines()[0].startswith("y  = 2 x")


def test_several_tags_are_several_quotations(root):
    assert len(quote("lines", "TWO.1 TWO.2", root)) == 2


@pytest.mark.parametrize(
    ("kind", "arguments", "complaint"),
    [
        ("code", "scratchnet/layer.py backward", "scratchnet/layer.py defines no backward"),
        ("code", "scratchnet/layer.py Two.forward", "scratchnet/layer.py defines no Two.forward"),
        ("code", "scratchnet/kernel.cu three", "scratchnet/kernel.cu defines no three"),
        ("code", "scratchnet/none.py f", "there is no file scratchnet/none.py"),
        ("code", "scratchnet/layer.py", "expected a file and a name"),
        ("lines", "TWO.3", r"scratchnet/layer.py derives no \(TWO.3\)"),
        ("formula", "THREE.1", r"no file derives \(THREE.1\)"),
        ("lines", "(TWO.1)", "is no tag"),
        ("result", 'scratchnet/page.md "three"', "no line of scratchnet/page.md contains 'three'"),
        ("result", "scratchnet/page.md one three", "no line of scratchnet/page.md contains 'three'"),
        ("result", "scratchnet/page.md", "expected a file and a text"),
    ],
)
def test_what_is_not_there_is_an_error(root, kind, arguments, complaint):
    with pytest.raises(LookupError, match=complaint):
        quote(kind, arguments, root)


def test_single_lines_of_one_file_stand_together(root):
    found = joined(quote("lines", "TWO.2 TWO.1", root) + quote("code", "scratchnet/layer.py TABLE", root))
    assert [[number for number, _ in each.lines] for each in found] == [[17, 18, 19, 20, 32, 35], [8, 9, 10, 11]]
    assert len(joined(quote("formula", "TWO.1", root) + quote("lines", "TWO.1", root))) == 2


def test_a_quotation_is_a_line_of_its_own():
    assert QUOTE.findall("[[code a.py f]]\nas in [[lines A.1]] or\n[[formula A.1]] \n") == [
        ("code", "a.py f"),
        ("formula", "A.1"),
    ]


def test_a_run_of_quotations_ends_at_the_text_behind_it():
    text = "one\n\n[[lines A.1]]\n\n[[lines A.2]]\n\ntwo\n[[lines A.3]]"
    assert RUN.sub("-", text) == "one\n\n-two\n-"


PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if QUOTE.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_quotation_of_the_pages_is_found(page):
    for kind, arguments in QUOTE.findall(page.read_text(encoding="utf-8")):
        assert quote(kind, arguments)
