"""The explorer's page in a browser: each module opens, its numbers are those of the arrays, all of it can be reached."""

import numpy as np
import pytest

import scratchnet as sn
from models.mobilenetv2 import conv_bn, inverted_residual
from scratchnet.explore.page import write_page
from scratchnet.explore.step import probabilities, take_step
from scratchnet.explore.subject import Subject

pytest_plugins = ["browser"]
SHOWN = 3
LEVELS = "async (k) => Array.from((await unpackArray(D.arrays[k])).levels)"


@pytest.fixture(scope="module")
def subject():
    """A small MobileNetV2, and six random pictures."""
    rng = np.random.default_rng(0)
    make = {"dtype": np.float32, "rng": rng}
    features = [conv_bn(3, 6, 3, 1, **make), inverted_residual(6, 6, 2, 1, False, **make)]
    features.append(inverted_residual(6, 8, 1, 2, False, **make))
    head = {"drop": sn.Dropout(0.2, rng=rng), "linear": sn.Linear(8, 5, **make)}
    model = sn.Sequential({
        "features": sn.Sequential(*features), "pool": sn.GlobalAvgPool2d(), "flatten": sn.Flatten(),
        "classifier": sn.Sequential(head),
    })  # fmt: skip
    pictures, labels = rng.integers(0, 256, (6, 3, 12, 12)).astype(np.uint8), np.array([1, 0, 4, 2, 3, 1])
    x = np.ascontiguousarray((pictures / 128 - 1).astype(np.float32))
    names = ["one", "two", "three", "four", "five"]
    rest = pictures, [*range(20, 26)], labels, names, names, ["A note & more."]
    return Subject("A <small> network", "pictures of noise", model, sn.CrossEntropyLoss(0.1), 0.2, x, labels, *rest)


@pytest.fixture(scope="module")
def taken(subject):
    return take_step(subject.model, subject.criterion, subject.x, subject.target, subject.lr)


@pytest.fixture(scope="module")
def url(subject, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(subject, path, SHOWN)
    return path.as_uri()


@pytest.fixture
def opened(page, url):
    page.goto(url)
    settle(page)
    return page


def settle(page):
    page.wait_for_selector("#panel[aria-busy=false]")


def go(page, moment):
    page.evaluate("go", moment)
    settle(page)


def value(place):
    return float(place.get_attribute("value"))


def moments(taken):
    """What the page says at each moment, but for numbers."""
    forward = [f"forward, {layer.name} {layer.kind}, y of rms" for layer in taken.layers]
    backward = [f"backward, {layer.name} {layer.kind}, dx of rms" for layer in reversed(taken.layers)]
    return ["the batch", *forward, "the loss", *backward, "the update"]


def test_every_module_opens(opened, taken):
    for block in opened.locator("details").all():
        block.locator("summary").click()
    rows = opened.locator("#column li > button").all()
    assert len(rows) == len(taken.layers) + 3
    for row, layer in zip(rows[1:-2], taken.layers, strict=True):
        row.click()
        settle(opened)
        assert opened.locator("h2", has_text=layer.name).inner_text() == f"{layer.name} {layer.kind}"
        assert row.get_attribute("aria-current") == "step"
        assert opened.locator("[aria-current]").count() == 1
        heads = opened.locator("main h3").all_inner_texts()
        wanted = ["Forward now", "Backward", "One channel", "Weights", "Gradient check", "Formula", "Code"]
        for head in wanted if layer.is_layer else [*wanted[:3], *wanted[5:]]:
            assert any(found.replace("\n", " ").startswith(head) for found in heads), (layer.name, head)
        if layer.is_layer:
            assert "Backward is the derivative of forward" in opened.locator(".check").inner_text()
        sections = opened.locator("[data-parameter]").evaluate_all("found => found.map(e => e.dataset.parameter)")
        assert sections == [f"{layer.name}.{name}" for name, _ in layer.step.parameters()]
        shapes = opened.locator("figure[data-array]").evaluate_all("found => found.map(e => +e.dataset.array)")
        assert shapes == [layer.x, layer.y, layer.dy, layer.dx]


def test_it_asks_for_nothing_but_itself(opened, url, seen):
    go(opened, 3)
    assert seen.asked == [url]


def test_the_heat_maps_are_the_arrays(opened, taken):
    facts = opened.evaluate("D.arrays.map(({ data, ...rest }) => rest)")
    for k, (array, fact) in enumerate(zip(taken.arrays, facts, strict=True)):
        shown = array[:SHOWN]
        levels = np.array(opened.evaluate(LEVELS, k), float).reshape(shown.shape)
        unit = fact["scale"] / (127 if fact["signed"] else 255)
        wanted = np.clip(shown, -fact["scale"], fact["scale"])
        np.testing.assert_allclose((levels - 128 * fact["signed"]) * unit, wanted, rtol=0, atol=0.51 * unit)
        assert fact["signed"] or array.min() >= 0
    assert {k for layer in taken.layers for k in (layer.x, layer.y, layer.dy, layer.dx)} == set(range(len(facts)))


PIXELS = """async ([index, cell]) => {
    const canvas = document.querySelector(`figure[data-array="${index}"] canvas`), array = D.arrays[index];
    const [high, wide] = array.shape.slice(1), across = canvas.width / (wide + 1);
    const [left, top] = [(cell % across) * (wide + 1), Math.floor(cell / across) * (high + 1)];
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const seen = new Uint32Array(copy.getImageData(left, top, wide, high).data.buffer);
    const { levels } = await unpackArray(array), colours = coloursOf(array.signed);
    const start = (state.picture * array.kept + cell) * high * wide;
    return [seen.length, seen.every((pixel, k) => pixel === colours[levels[start + k]]), new Set(seen).size];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_drawn_is_what_is_held(page, url, taken, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(url)
    settle(page)
    page.locator("#pictures input").nth(2).check()
    layer = taken.layers[6]
    go(page, 7)
    assert layer.kind == "ReLU6"
    for index in (layer.x, layer.y, layer.dy, layer.dx):
        for cell in (0, taken.arrays[index].shape[1] - 1):
            count, right, colours = page.evaluate(PIXELS, [index, cell])
            assert count == taken.arrays[index][0, 0].size and right and colours > 5


def test_numbers_of_a_channel_and_a_picture_are_exact(opened, taken):
    layer = next(layer for layer in taken.layers if layer.name == "features.1.conv.0.1")
    go(opened, 1 + taken.layers.index(layer))
    for picture, channel in ((0, 0), (2, 9)):
        opened.locator("#pictures input").nth(picture).check()
        opened.locator("[data-key=channel]").fill(str(channel))
        opened.locator("[data-key=channel]").press("Enter")
        settle(opened)
        for name in ("x", "y", "dy", "dx"):
            found = [value(place) for place in opened.locator(f"tr[data-name={name}] data").all()]
            array = taken.arrays[getattr(layer, name)][picture, channel]
            assert found[:2] == [array.min(), array.max()]
            assert found[2] == pytest.approx(array.mean(dtype=float), rel=1e-5, abs=1e-12)
        for name in ("weight", "bias"):
            change = taken.changes[f"{layer.name}.{name}"]
            found = [value(place) for place in opened.locator(f'tr[data-name="{layer.name}.{name}"] data').all()]
            assert found[:3] == [change.before[channel], change.gradient[channel], change.after[channel]]
            assert found[3] == change.after[channel] - change.before[channel]
    assert opened.evaluate("document.activeElement.dataset.key") == "channel"  # it is still where one types


def test_the_loss_and_its_probabilities(opened, taken, subject):
    go(opened, 1 + len(taken.layers))
    said = [value(place) for place in opened.locator("main > p data").all()]
    assert said == [taken.loss, taken.after, taken.losses[0], taken.losses_after[0]]
    opened.locator("#pictures input").nth(1).check()
    settle(opened)
    before, after = probabilities(taken.logits)[1], probabilities(taken.logits_after)[1]
    rows = opened.locator("tr[data-class]").all()
    order = [int(row.get_attribute("data-class")) for row in rows]
    assert order == np.argsort(-before).tolist()
    for row, k in zip(rows, order, strict=True):
        found = [value(place) for place in row.locator("data").all()]
        assert found == [taken.logits[1, k], before[k], after[k], taken.logits_after[1, k]]
        assert row.locator("th").inner_text() == subject.classes[k]
    assert opened.locator("tr.right th").inner_text() == subject.names[subject.labels[1]]


def test_what_the_step_changed(opened, taken):
    opened.locator("#last").click()
    settle(opened)
    rows = {row.get_attribute("data-name"): row for row in opened.locator("tr[data-name]").all()}
    assert rows.keys() == taken.changes.keys()
    ratios = []
    for name, row in rows.items():
        before, gradient, after = (np.linalg.norm(part.astype(float)) for part in taken.changes[name])
        change = np.linalg.norm(taken.changes[name].after.astype(float) - taken.changes[name].before)
        found = [value(place) for place in row.locator("data").all()]
        ratios.append(change / before if before else 0)
        assert found == pytest.approx([ratios[-1], before, *([gradient / before] if before else [])], rel=1e-6)
    assert ratios == sorted(ratios, reverse=True)
    pictures = [value(place) for place in opened.locator("table").first.locator("data").all()]
    assert pictures[:2] == [taken.losses[0], taken.losses_after[0]]
    opened.locator("[data-key='go-features.1.conv.2.weight']").click()
    settle(opened)
    assert opened.locator("main h2").inner_text().startswith("features.1.conv.2 ")


def test_weights_before_and_after(opened, taken):
    name = "features.0.0.weight"
    go(opened, 1)
    part = opened.locator(f"[data-parameter='{name}']")
    figure = part.locator("figure").first
    picture = "canvas => canvas.toDataURL()"
    before = figure.locator("canvas").evaluate(picture)
    norm = np.linalg.norm(taken.changes[name].before.astype(float))
    assert value(part.locator("td data").first) == pytest.approx(norm, rel=1e-9)
    opened.get_by_label("after it").check()
    settle(opened)
    assert figure.inner_text().startswith("W after")
    assert figure.locator("canvas").evaluate(picture) != before
    assert opened.evaluate("document.activeElement.dataset.key") == "after-true"


def test_the_keyboard_goes_through_the_whole_step_and_back(opened, taken):
    said, now = moments(taken), opened.locator("#now")
    assert now.get_attribute("aria-live") == "polite"
    for number, what in enumerate(said):
        assert now.inner_text().startswith(f"{number + 1} of {len(said)}: {what}")
        assert opened.locator("#moment").get_attribute("aria-valuetext") == now.inner_text()
        assert opened.locator("[aria-current]").count() == 1
        opened.keyboard.press("ArrowRight")
    settle(opened)
    assert opened.locator("h2", has_text="The update").count() == 1  # there is nothing behind it
    opened.keyboard.press("ArrowLeft")
    settle(opened)
    assert now.inner_text().startswith(f"{len(said) - 1} of {len(said)}: {said[-2]}")
    assert opened.locator(".badge").evaluate("badge => badge.parentElement.innerText").startswith("Backward")
    assert opened.locator("main h3").first.inner_text().startswith("Backward")  # first what happens now
    assert opened.locator("#column button.ahead").count() == len(taken.layers) + 1
    assert opened.locator("#column button.behind").count() == len(taken.layers)


def test_everything_can_be_reached_by_tab(opened):
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.activeElement.id") == "panel"
    opened.locator("#on").focus()
    opened.keyboard.press("Enter")
    settle(opened)
    assert opened.locator("#now").inner_text().startswith("2 of ")
    opened.locator("#pictures input").first.focus()
    opened.keyboard.press("ArrowRight")  # in a group of radio buttons it is the next one, not the next moment
    settle(opened)
    assert opened.locator("#pictures input").nth(1).is_checked()
    assert opened.locator("#now").inner_text().startswith("2 of ")
    opened.locator("summary").nth(1).focus()
    opened.keyboard.press("Enter")
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    settle(opened)
    assert opened.locator("main h2").inner_text().startswith("features.1 Residual")
    outline = opened.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_an_equation_leads_to_its_line_and_back(opened):
    go(opened, 2)
    opened.locator("[data-tag='formula-BN.7']").first.click()
    assert opened.evaluate("document.activeElement.dataset.tag") == "code-BN.7"
    line = opened.evaluate("document.activeElement.closest('pre > span').innerText")
    assert "dx = weight" in line
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.activeElement.dataset.tag") == "formula-BN.7"


def test_an_address_leads_to_a_layer(page, url, opened):
    page.goto("about:blank")
    page.goto(f"{url}#features.1.conv.2")
    settle(page)
    assert page.locator("main h2").inner_text().startswith("features.1.conv.2 Conv2d")
    page.keyboard.press("ArrowRight")
    assert page.url.endswith("#features.1.conv.3")


def test_a_heat_map_chooses_a_channel(opened):
    go(opened, 1)
    canvas = opened.locator("figure[data-array]").nth(1).locator("canvas")
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] - 8, "y": 8})
    settle(opened)
    assert opened.locator("[data-key=channel]").input_value() == "5"


def test_the_title_is_text(opened):
    assert "A <small> network" in opened.title() and "A <small> network" in opened.locator("#about").inner_text()
    assert opened.locator(".note").inner_text() == "A note & more."


@pytest.mark.parametrize(("scheme", "some"), [("light", (0, 1, 4, "loss", "last")), ("dark", (1, "last"))])
def test_axe_finds_nothing(page, url, taken, axe, scheme, some):
    page.emulate_media(color_scheme=scheme)
    page.goto(url)
    settle(page)
    for moment in some:
        go(page, {"loss": len(taken.layers) + 1, "last": 2 * len(taken.layers) + 2}.get(moment, moment))
        assert axe() == []


def test_it_fits_every_width(opened, width, axe, overflow, taken):
    for moment in (0, 1, len(taken.layers) + 1, 2 * len(taken.layers) + 2):
        go(opened, moment)
        assert overflow() == 0
    if width < 500:  # where the column stands above
        go(opened, 0)
        assert axe() == []
