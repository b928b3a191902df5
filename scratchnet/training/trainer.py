"""Training: the step, the epoch, the evaluation, and going on after a stop as if there had been none.

A run is a pure function of its configuration. Where it stands is (epoch, batch); what it has become is the network's
parameters and buffers, the optimizer's slots, the generator of dropout, and the sums of the epoch under way. All of that is
in a checkpoint, so that a run that is killed and resumed ends with the same bits as one that never was.
"""

import math
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from scratchnet.array import to_device
from scratchnet.training import checkpoint
from scratchnet.training.metrics import Average, MetricsLog, draw_curves

BEST, METRICS, CURVES = "best.npz", "metrics.csv", "curves.png"
SYNC_EVERY = {"cpu": 1, "cuda": 50}  # steps between two looks at the loss: on a GPU each one waits for the step to end


def train_step(model, criterion, optimizer, x, labels):
    """Forward, loss, backward, update; returns the loss, a 0-d array, and the logits."""
    model.zero_grad()
    logits = model(x)
    loss = criterion(logits, labels)
    dlogits = criterion.backward()
    model.backward(dlogits)
    optimizer.step()
    return loss, logits


def evaluate(model, criterion, batches, device="cpu"):
    """(loss, accuracy) over all batches, in eval mode; the network is left in training mode."""
    model.eval()
    loss, accuracy = Average(), Average()
    for x, labels in batches.epoch(0):
        x, labels = to_device(x, device), to_device(labels, device)
        logits = model(x)
        loss.add(criterion(logits, labels), len(labels))
        accuracy.add((logits.argmax(axis=1) == labels).mean(), len(labels))
    model.train()
    return loss.value, accuracy.value


class Diverged(RuntimeError):
    """The loss is no longer a finite number."""


class Interrupted(Exception):
    """A signal asked the run to stop; the checkpoint was written."""

    def __init__(self, number):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Trainer:
    """One run: a network, an optimizer, a schedule, the batches, and the folder in which all of it is kept.

    Args:
        model, criterion, optimizer: as `train_step` takes them.
        schedule: step -> learning rate.
        train, validation: `Batches`.
        epochs: how many in all.
        out: the folder of metrics.csv, last.npz, best.npz and curves.png.
        config: what was asked for, as JSON; goes into every checkpoint.
        generator: the numpy.random.Generator that dropout draws from.
        console: where to report.
        device: "cpu" or "cuda", where the model is.
        checkpoint_every: steps between two checkpoints; there is one at the end of every epoch in any case.
    """

    def __init__(
        self, model, criterion, optimizer, schedule, train, validation,
        *, epochs, out, config, generator, console, device="cpu", checkpoint_every=None,
    ):  # fmt: skip
        self.model, self.criterion, self.optimizer, self.schedule = model, criterion, optimizer, schedule
        self.train, self.validation = train, validation
        self.epochs, self.out, self.config, self.generator = epochs, Path(out), config, generator
        self.console, self.device, self.checkpoint_every = console, device, checkpoint_every
        self.metrics = MetricsLog(self.out / METRICS)
        self.epoch = self.batch = 0
        self.best = {"epoch": 0, "val_acc": -1.0}
        self._signal = None
        self._open_epoch()

    @property
    def steps_done(self):
        """Optimizer steps since the beginning."""
        return self.epoch * len(self.train) + self.batch

    def run(self):
        """Train to the last epoch.

        Raises:
            Diverged: the loss is not finite; the last checkpoint is untouched.
            Interrupted: SIGINT or SIGTERM came, and a checkpoint was written at the end of the step.
        """
        with self._signals(), np.errstate(over="ignore", invalid="ignore"):  # `_look` reports what comes of it
            while self.epoch < self.epochs:
                self._train_epoch()
                self._close_epoch()

    # One epoch -------------------------------------------------------------------------------------------------------

    def _open_epoch(self):
        self.loss, self.accuracy, self.seconds, self.pictures = Average(), Average(), 0.0, 0

    def _train_epoch(self):
        title = f"epoch {self.epoch + 1}/{self.epochs}"
        started, before = time.perf_counter(), self.seconds
        with self.console.bar(len(self.train), self.batch, title) as bar:
            for x, labels in self.train.epoch(self.epoch, self.batch):
                self.optimizer.lr = self.schedule(self.steps_done)
                x, labels = to_device(x, self.device), to_device(labels, self.device)
                loss, logits = train_step(self.model, self.criterion, self.optimizer, x, labels)
                self.loss.add(loss, len(labels))
                self.accuracy.add((logits.argmax(axis=1) == labels).mean(), len(labels))
                self.pictures += len(labels)
                self.batch += 1
                self.seconds = before + time.perf_counter() - started
                if self.batch % SYNC_EVERY[self.device] == 0 or self.batch == len(self.train):
                    self._look(bar)
                if self._signal:
                    self.save()
                    raise Interrupted(self._signal)
                if self.checkpoint_every and self.steps_done % self.checkpoint_every == 0:
                    self.save()

    def _look(self, bar):
        if not math.isfinite(self.loss.value):
            raise Diverged(
                f"the loss is {self.loss.value} after step {self.batch} of epoch {self.epoch + 1}, at learning rate "
                f"{self.optimizer.lr:g}: try a lower --lr; {self.out / checkpoint.LAST} holds the last good state, if any"
            )
        bar.set_postfix_str(
            f"loss {self.loss.value:.4f}, accuracy {self.accuracy.value:.4f}, lr {self.optimizer.lr:.4g}, "
            f"{self.pictures / self.seconds:.0f} pictures/s",
            refresh=False,
        )
        bar.update(self.batch - bar.n)

    def _close_epoch(self):
        """Validate, write the epoch's line, its checkpoint and the curves."""
        val_loss, val_acc = evaluate(self.model, self.criterion, self.validation, self.device)
        row = {
            "epoch": self.epoch + 1, "train_loss": self.loss.value, "train_acc": self.accuracy.value,
            "val_loss": val_loss, "val_acc": val_acc, "lr": self.optimizer.lr,
            "seconds": self.seconds, "images_per_second": self.pictures / max(self.seconds, 1e-9),
        }  # fmt: skip
        self.epoch, self.batch = self.epoch + 1, 0
        self._open_epoch()
        if val_acc > self.best["val_acc"]:
            self.best = {"epoch": self.epoch, "val_acc": val_acc}
            checkpoint.save(self.out / BEST, *self._state())
        self.metrics.append(row)
        self.save()
        draw_curves(self.metrics.rows(), self.out / CURVES, self.config["title"])
        self.console.say(
            f"epoch {row['epoch']:>3}/{self.epochs}  train loss {row['train_loss']:.4f} acc {row['train_acc']:.4f}  "
            f"val loss {val_loss:.4f} acc {val_acc:.4f}  lr {row['lr']:.2e}  {row['seconds']:.1f} s  "
            f"{row['images_per_second']:.0f} pictures/s" + ("  best" if self.best["epoch"] == self.epoch else "")
        )

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def save(self):
        """Write last.npz; the one before it is kept as last.previous.npz."""
        checkpoint.save_rotating(self.out, *self._state())

    def _state(self):
        arrays = {f"model/{key}": to_device(value, "cpu") for key, value in self.model.state_dict().items()}
        arrays |= {f"optimizer/{key}": to_device(value, "cpu") for key, value in self.optimizer.state_dict().items()}
        header = {
            "config": self.config, "epoch": self.epoch, "batch": self.batch, "best": self.best,
            "loss": [float(self.loss.sum), self.loss.count], "accuracy": [float(self.accuracy.sum), self.accuracy.count],
            "seconds": self.seconds, "pictures": self.pictures,
            "generator": checkpoint.generator_state(self.generator),
        }  # fmt: skip
        return arrays, header

    def restore(self, arrays, header):
        """Go on from a checkpoint's content.

        Raises:
            CheckpointError: it is of another network or optimizer; nothing was changed then.
        """
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        own = {f"{part}/{key}": value for part, state in parts.items() for key, value in state.items()}
        checkpoint.expect(arrays, own, "the checkpoint is of another network or optimizer")
        given = {part: {k.split("/", 1)[1]: v for k, v in arrays.items() if k.startswith(part)} for part in parts}
        self.model.load_state_dict(given["model"])
        self.optimizer.load_state_dict(given["optimizer"])
        checkpoint.restore_generator(self.generator, header["generator"])
        self.epoch, self.batch, self.best = header["epoch"], header["batch"], header["best"]
        (self.loss.sum, self.loss.count), (self.accuracy.sum, self.accuracy.count) = header["loss"], header["accuracy"]
        self.seconds, self.pictures = header["seconds"], header["pictures"]
        self.metrics.truncate_to(self.epoch)  # a line that was written after this checkpoint will be written again

    @contextmanager
    def _signals(self):
        """SIGINT and SIGTERM wait for the end of the step; the handlers from before come back afterwards."""

        def remember(number, _frame):
            self._signal = number

        before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
