"""The blocks of Python that README and the guide show, each of which has to run by itself."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S), 1)
]


def block_with(text):
    """The one block of the guide that has the text; README's may have it as well."""
    found = [block.values[0] for block in BLOCKS if text in block.values[0] and not block.id.startswith("README")]
    assert len(found) == 1, f"{len(found)} blocks of the guide have {text!r}"
    return found[0]
