"""--watch: a page on this machine that shows a run while it trains.

The trainer tells what it measures (`Follower`), as it tells the log; this keeps the last of it, and the page asks for it:
    state         how far the run is, the curves so far, the rows of metrics.csv
    validation    after each epoch: the confusion matrix, and the pictures that were taken for something else
Nothing is computed for a page that is not there, but for the worst pictures, a softmax of logits that are there anyway.
The rows come from the run's record, so that a run that was resumed shows all its epochs; the finer curves begin anew.
"""

import base64
import contextlib
import json
import math
import threading
import time
from importlib import resources

import numpy as np

from scratchnet.parallel import ranks
from scratchnet.program.ending import ending_of
from scratchnet.program.parser import UsageError
from scratchnet.program.png import COLOUR, png
from scratchnet.program.private import Private
from scratchnet.program.worst import Worst
from scratchnet.training.evaluation import MATRIX, confusion_lines
from scratchnet.training.follow import Follower
from scratchnet.training.metrics import FIELDS

POINTS = 600  # of each fine curve at most: then every second one goes
PICTURES = 12  # of the worst predicted
SIDE = 96  # pixels of such a picture, at most: of larger ones every second, third, … is shown
OPEN = 6.0  # seconds since a page last asked, in which it is taken to be there
LAST = 3.0  # seconds that the end waits for such a page to ask once more


@contextlib.contextmanager
def watching(port):
    """The `Watch` of a run, whose page says at the end how that ended; None where `port` is None, which asks for none.

    Raises:
        UsageError: the port cannot be had.
    """
    if port is None:
        yield None
        return
    watch = Watch()
    ranks.from_first(lambda: watch.open(port))
    try:
        yield watch
    except BaseException as error:
        watch.end("stopped", ending_of(error)[1])
        raise
    else:
        watch.end("finished", "")
    finally:
        watch.stop()


class Watch(Follower):
    """What a run's page shows. Every rank has one, and the first serves it."""

    def __init__(self):
        self._lock, self._asked, self._changed = threading.Lock(), 0.0, threading.Condition()
        self._version = self._heard = self._seen = 0  # of the state, of the state that a page has, of its validation
        self._answer = -1, b""
        self._points: dict = {name: [] for name in ("epoch", "loss", "accuracy", "lr", "images_per_second")}
        self._every, self._looks = 1, 0
        self._first = None  # (step, time) of the first look: what came before had to compile
        self._state: dict = {"running": "starting", "why": "", "step": 0, "left": None, "rows": [], "validation": 0}
        self._validation = b"{}"
        self._private = None
        self._rows: list = []

    def open(self, port):
        """Listen. Raises UsageError where the port cannot be had."""
        page = (resources.files("scratchnet.program") / "watch.html").read_bytes()
        documents = {
            "": ("text/html; charset=utf-8", lambda: page),
            "state": ("application/json", self._state_now),
            "validation": ("application/json", self._validation_now),
        }
        try:
            self._private = Private(port, documents)
        except OSError as error:
            what = f"port {port} cannot be had ({error.strerror or error})" if port else error.strerror or error
            raise UsageError(f"--watch: {what}: give another port, or none, and one that is free is taken") from None

    @property
    def url(self):
        """The page's address; None on a rank that serves none."""
        return self._private and self._private.url

    def begin(self, trainer, about):
        """Take in what does not change.

        Args:
            trainer: that of the run.
            about: what the page says under its title, a list of short texts.
        """
        data = trainer.validation.dataset
        self.worst, self.data, self._rows = Worst(trainer.validation, PICTURES), data, trainer.record.rows
        self._set(
            title=str(trainer.config.get("title", "")), about=[*map(str, about)], epochs=trainer.epochs,
            steps=trainer.epochs * len(trainer.train), steps_an_epoch=len(trainer.train), step=trainer.steps_done,
            batch=trainer.train.batch_size,
        )  # fmt: skip

    # What the trainer tells -------------------------------------------------------------------------------------------

    def step(self, row):
        """A look at the training."""
        now, step = time.monotonic(), row["step"]
        self._first = self._first or (step, now)
        done, seconds = step - self._first[0], now - self._first[1]
        left = seconds / done * (self._state["steps"] - step) if done else None
        with self._lock:
            if self._looks % self._every == 0:
                for name, values in self._points.items():
                    values.append(_short(row[name]))
                if len(self._points["epoch"]) > POINTS:
                    self._every *= 2
                    self._points = {name: values[::2] for name, values in self._points.items()}
            self._looks += 1
        validating = step % self._state["steps_an_epoch"] == 0
        rate = row["images_per_second"]
        self._set(running="validating" if validating else "training", step=step, left=left, rate=rate, lr=row["lr"])

    def predicted(self, logits, labels):
        """A batch of validation pictures."""
        self.worst.add(logits, labels)

    def epoch(self, step, row, result):
        """The end of an epoch."""
        mistakes = self.worst.take()  # on all ranks
        if not self._private:
            return
        classes = self.data.classes
        few = len(classes) <= MATRIX
        found = {
            "epoch": row["epoch"],
            "classes": [*classes] if few else [],
            "confusion": result.confusion.tolist() if few else [],
            "lines": [] if few else confusion_lines(result, classes),
            "mistakes": [
                {"picture": shown(self.data.images[m.picture]), "number": m.picture, "label": classes[m.label],
                 "said": classes[m.said], "share": m.share, "share_said": m.share_said}
                for m in mistakes
            ],
        }  # fmt: skip
        self._validation = json.dumps(found).encode()
        ended = step == self._state["steps"]
        self._set(running="testing" if ended else "training", validation=row["epoch"], step=step)

    def tested(self, step, result):
        """The test of the best checkpoint."""
        self._set(test={"loss": result.loss, "accuracy": result.accuracy})

    def end(self, running, why):
        """Say how the run ended, and wait a moment for pages that are open to hear it."""
        if self._private:
            self._set(running=running, why=why, left=None)
            with self._changed:
                open_now = time.monotonic() - self._asked < OPEN
                self._changed.wait_for(self._is_heard, LAST if open_now else 0)

    def stop(self):
        """Serve nothing any more."""
        if self._private:
            time.sleep(0.05)  # what was asked for last is on its way
            self._private.close()

    # What the page asks for -------------------------------------------------------------------------------------------

    def _set(self, **what):
        with self._lock:
            self._state |= what
            self._version += 1

    def _state_now(self):
        """The state as JSON, made once for all pages that ask while it stays."""
        with self._lock:
            version, (known, answer) = self._version, self._answer
            if version != known:
                state, points = dict(self._state), {name: values[:] for name, values in self._points.items()}
        if version != known:
            rows = [[_short(row[field]) for field in FIELDS] for row in list(self._rows)]
            answer = json.dumps(state | {"fields": FIELDS, "rows": rows, "points": points}, default=_short).encode()
            self._answer = version, answer
        with self._changed:
            self._asked, self._heard = time.monotonic(), version
            self._changed.notify_all()
        return answer

    def _validation_now(self):
        with self._changed:
            self._seen = self._state["validation"]
            self._changed.notify_all()
        return self._validation

    def _is_heard(self):
        """Whether a page has all there is."""
        return self._heard >= self._version and self._seen == self._state["validation"]


def shown(image):
    """A picture of a data set as a data: URL; "" for one that is neither grey nor coloured.

    Args:
        image: (C, H, W), bytes or floats from 0 to 1.
    """
    if image.ndim != 3 or len(image) not in COLOUR:
        return ""
    every = -(-max(image.shape[1:]) // SIDE)
    small = image[:, ::every, ::every]
    if small.dtype != np.uint8:
        small = np.rint(255 * np.clip(small, 0, 1)).astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(png(small)).decode()


def _short(value):
    """A number as JSON has it, with the digits that can be seen."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
