"""--watch in a browser: the page shows the numbers of the run, at every width, light and dark, and says when it ended."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from scratchnet.data.shapes import draw_shapes
from scratchnet.program.watch import Watch
from scratchnet.training.batches import Batches
from scratchnet.training.evaluation import Evaluation

pytest_plugins = ["browser"]
STEPS, EPOCHS = 8, 5
EVIL = "<img src=x onerror=alert(1)> & co"


@pytest.fixture(scope="module")
def drawn():
    return draw_shapes(60, 1, 0)[0]


class Run:
    """A run that does not compute: it tells a `Watch` of made-up numbers, and drawn shapes."""

    def __init__(self, data, title):
        self.batches, self.rows, self.done = Batches(data, 30, shuffle=False), [], 0
        record, config = SimpleNamespace(rows=self.rows), {"title": title}
        train = type("Train", (), {"batch_size": 30, "__len__": lambda self: STEPS})()
        self.watch = Watch()
        self.watch.open(0)
        trainer = SimpleNamespace(
            train=train, validation=self.batches, epochs=EPOCHS, steps_done=0, config=config, record=record
        )
        self.watch.begin(trainer, ["54 training and 6 validation pictures", "2 ranks × 1 thread", "runs/cifar"])

    def go(self, steps):
        for _ in range(steps):
            self.done += 1
            x = self.done / STEPS
            self.watch.step(
                {"step": self.done, "epoch": x, "loss": 2.3 * 0.8**x, "accuracy": 1 - 0.9 * 0.8**x, "lr": 0.1 * x / EPOCHS,
                 "images_per_second": 200 + 10 * np.sin(x)}
            )  # fmt: skip
            if self.done % STEPS == 0:
                self.close_epoch(int(x))

    def close_epoch(self, epoch):
        rng, labels = np.random.default_rng(epoch), self.batches.dataset.labels
        logits = rng.normal(size=(len(labels), 10)) + 2 * np.eye(10)[labels]
        self.table = np.zeros((10, 10), np.int64)
        np.add.at(self.table, (labels, logits.argmax(axis=1)), 1)
        for here in (slice(0, 30), slice(30, 60)):
            self.watch.predicted(logits[here], labels[here])
        share = self.table.trace() / 60
        row = {"epoch": epoch, "train_loss": 2.3 * 0.8**epoch, "train_acc": 0.5, "val_loss": 2.5 * 0.8**epoch,
               "val_acc": share,
               "lr": 0.02 * epoch, "seconds": 9.5, "images_per_second": 207.0}  # fmt: skip
        self.rows.append(row)
        self.watch.epoch(self.done, row, Evaluation(row["val_loss"], share, self.table))


@pytest.fixture
def run(drawn, page):
    made = Run(drawn, "MobileNetV2 cifar, width 0.5, on drawn shapes, seed 0")
    yield made
    page.goto("about:blank")  # or it would still ask
    made.watch.stop()


def opened(page, run):
    """The page, once it shows what the run has said so far."""
    page.goto(run.watch.url)
    shows(page, run)
    return page


def shows(page, run):
    page.locator("dd", has_text=f"{run.done} of ").first.wait_for()


def status(page, text):
    """Wait until the page says how the run is; Playwright's own way would need `eval`, which the page forbids."""
    page.locator("#status", has_text=re.compile(f"^{text}")).wait_for()


def facts(page):
    return dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))


def test_it_shows_the_run_at_every_width(page, run, width, axe, overflow):
    run.go(3 * STEPS + 4)
    opened(page, run)
    assert (
        page.title().startswith("70 %, training: MobileNetV2")
        and page.locator("h1").inner_text() == run.watch._state["title"]
    )
    best = max(run.rows, key=lambda row: row["val_acc"])
    said = facts(page)
    assert said["Epoch"] == "4 of 5" and said["Step"] == "28 of 40" and said["Learning rate"] == "0.07"
    assert said["Best by validation"] == f"{100 * best['val_acc']:.1f} %, epoch {best['epoch']}"
    assert page.locator("#status").inner_text() == "Training" and "2 ranks" in page.locator("#about").inner_text()
    labels = page.locator("svg").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    loss = 2.3 * 0.8**3.5
    assert labels[0] == f"Loss: last steps {loss:.3g}, train {2.3 * 0.8**3:.3g}, validation {2.5 * 0.8**3:.3g}"
    assert len(labels) == 4 and all(re.search(r": last steps \d", label) for label in labels)
    cells = page.locator("#confusion tbody tr").evaluate_all(
        "rows => rows.map(r => [...r.querySelectorAll('td')].map(c => +c.innerText))"
    )
    assert np.array_equal(cells, run.table)
    assert page.locator(".wrong img").evaluate_all("all => all.every(one => one.complete && one.naturalWidth === 32)")
    assert page.locator(".wrong img").count() == min(12, 60 - run.table.trace())
    assert overflow() == 0 and axe() == []
    page.locator("summary").click()
    cells = page.locator("#rows tbody tr").all_inner_texts()
    assert len(cells) == 3 and cells[2].split("\t")[:3] == ["3", f"{2.3 * 0.8**3:.4g}", "50.0 %"]
    page.emulate_media(color_scheme="dark")
    assert overflow() == 0 and axe() == []


def test_it_follows_survives_a_reload_and_says_that_the_run_has_finished(page, run):
    run.go(2)
    opened(page, run)
    assert "Comes with the first validation" in page.locator("#confusion").inner_text()
    run.go(STEPS)
    shows(page, run)
    page.wait_for_selector("#confusion td.right")
    page.reload()
    shows(page, run)
    assert page.locator("#confusion td.right").count() == 10
    assert page.locator("svg circle").count() > 0
    run.go(5 * STEPS - run.done)
    run.watch.tested(run.done, SimpleNamespace(loss=0.5, accuracy=0.876))
    status(page, "Testing$")
    run.watch.end("finished", "")  # waits until the page has heard it
    run.watch.stop()
    status(page, "Finished$")
    page.wait_for_timeout(1500)
    assert page.locator("#status").inner_text() == "Finished" and facts(page)["Test"] == "87.6 %"
    assert facts(page)["Time left"] == "none" and page.title().startswith("100 %, finished")


def test_it_says_why_a_run_was_stopped(page, run):
    run.go(3)
    opened(page, run)
    run.watch.end("stopped", "stopped by SIGINT; the same command with --resume goes on from here")
    run.watch.stop()
    status(page, "Stopped: stopped by SIGINT; the same")


def test_it_says_when_the_program_is_gone(page, run, seen, axe):
    run.go(3)
    opened(page, run)
    run.watch.stop()
    status(page, "No answer since ")
    assert facts(page)["Step"] == "3 of 40" and page.title().startswith("no answer: ") and axe() == []
    assert seen.said and all("Failed to load resource: net::ERR_" in line for line in seen.said)
    page.goto("about:blank")
    seen.said.clear()


def test_names_are_text_whatever_is_in_them(page, drawn):
    run = Run(drawn._replace(classes=tuple(f"{EVIL}{k}" for k in range(10))), EVIL)
    run.go(STEPS)
    opened(page, run)
    assert page.locator("h1").inner_text() == EVIL and page.locator("img[src=x]").count() == 0
    assert page.locator("#confusion tbody th").first.inner_text() == f"{EVIL}0"
    page.goto("about:blank")
    run.watch.stop()


def test_a_curve_says_what_is_under_the_pointer(page, run):
    run.go(2 * STEPS)
    opened(page, run)
    box = page.locator("svg").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 50)
    read = page.locator(".key.read").inner_text()
    assert read.startswith(f"last steps {2.3 * 0.8**2:.3g} at epoch 2, train ")
    page.mouse.move(1, 1)
    page.locator(".key.read").wait_for(state="detached")
