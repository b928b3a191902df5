"""Every block of Python in README and in the guide runs alone, from an empty folder."""

import ast
import io
import re
import tokenize

import pytest
from snippets import BLOCKS, ROOT

SILENT = {getattr(tokenize, name) for name in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")}


@pytest.mark.parametrize("block", BLOCKS)
def test_it_runs_by_itself(block, tmp_path, monkeypatch, capsys):
    if "onnx" in block:
        pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {"__name__": "block"})


def test_readme_is_a_front_door():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    links = re.findall(r"\]\((?!https?:)([^)#]+)[)#]", text)
    assert len(links) > 40
    assert not [link for link in links if not (ROOT / link).exists()]


def test_readme_says_how_large_it_is():
    """The figures in it, within a tenth: lines with code, docstrings and comments apart, and lines of docstrings."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pattern = r"layers are ([\d,]+) lines of code beside ([\d,]+) of\s+derivation; all of the library is ([\d,]+)"
    said = [int(number.replace(",", "")) for number in re.search(pattern, text).groups()]
    code, prose = lines_of(sorted((ROOT / "scratchnet" / "layers").glob("*.py")))
    whole, _ = lines_of(sorted((ROOT / "scratchnet").rglob("*.py")))
    assert said == pytest.approx([code, prose, whole], rel=0.1)


def lines_of(paths):
    """(lines with code, lines of docstrings) of some files."""
    code = prose = 0
    for path in paths:
        text = path.read_text(encoding="utf-8")
        nodes = (
            node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        )
        said = set()
        for node in nodes:
            if ast.get_docstring(node) is not None:
                said.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        lines = {
            line for token in tokens if token.type not in SILENT for line in range(token.start[0], token.end[0] + 1)
        }
        code, prose = code + len(lines - said), prose + len(said)
    return code, prose
