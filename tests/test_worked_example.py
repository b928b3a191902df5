"""docs/course/worked-example.md: the numbers in its figure are those that its code computes."""

import doctest
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

import scratchnet

DOCS = Path(scratchnet.__file__).parent.parent / "docs"
SVG = "{http://www.w3.org/2000/svg}"
PLACE = re.compile(r"(\w+)\.(\d+)\.(\d+)")
NAMES = {"x", "h", "a", "z", "p", "loss", "dz", "da", "dh", "dx"} | {
    f"{d}{p}{k}" for d in ("", "d") for p in "Wb" for k in "12"
}


def computed():
    """Name -> array, after the page's code up to its update."""
    names: dict = {}
    for example in doctest.DocTestParser().get_examples(
        (DOCS / "course/worked-example.md").read_text(encoding="utf-8")
    ):
        if "def loss_with" in example.source:
            break
        exec(compile(example.source, "page", "single"), names)
    found = {name: names.get(name) for name in NAMES}
    for number, layer in (("1", names["first"]), ("2", names["second"])):
        found |= {f"W{number}": layer.weight.data, f"b{number}": layer.bias.data[:, None]}
        found |= {f"dW{number}": layer.weight.grad, f"db{number}": layer.bias.grad[:, None]}
    return found | {"loss": np.reshape(names["loss"], (1, 1))}


def drawn(svg):
    """(name, row, column) -> the number that the figure shows there."""
    found = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        if place := PLACE.fullmatch(group.get("id", "")):
            text = "".join(group.itertext()).strip().replace("−", "-")
            found[place[1], int(place[2]), int(place[3])] = float(text)
    return found


def wrong(svg, arrays):
    """Places where figure and arrays differ by more than half of the fourth decimal, or where only one has a number."""
    shown = drawn(svg)
    want = {(name, *at): array[at] for name, array in arrays.items() for at in np.ndindex(array.shape)}
    return sorted(k for k in shown.keys() | want if k not in shown or k not in want or abs(shown[k] - want[k]) > 5.1e-5)


def test_the_figure_shows_every_number_that_the_page_computes():
    assert wrong((DOCS / "figures/worked_example.svg").read_text(encoding="utf-8"), computed()) == []


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        (">1.0032<", ">1.0033<", ("loss", 0, 0)),
        (">−2.9242<", ">2.9242<", ("dx", 1, 3)),
        ('"dW2.1.0"', '"dW3.1.0"', ("dW2", 1, 0)),
    ],
)
def test_another_number_is_noticed(old, new, place):
    svg = (DOCS / "figures/worked_example.svg").read_text(encoding="utf-8")
    assert svg.count(old) == 1
    assert place in wrong(svg.replace(old, new), computed())
