"""Training: the step, the epoch, the evaluation, and going on after a stop as if there had been none.

A run is a pure function of its configuration. Where it stands is (epoch, batch); what it has become is the network's
parameters and buffers, the optimizer's slots, the generator of dropout, and the sums of the epoch under way. All of that is
in a checkpoint, so that a run that is killed and resumed ends with the same bits as one that never was.
"""

import math
import signal
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from scratchnet.array import to_device
from scratchnet.layers.loss import CrossEntropyLoss
from scratchnet.training import checkpoint
from scratchnet.training.evaluation import evaluate
from scratchnet.training.guard import bad_parameter, first_bad_layer
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


class Diverged(RuntimeError):
    """A number is no longer finite: the loss, or a gradient, which was then not applied."""


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
        average: a `WeightAverage` of the model, which is then what is validated; or None.
        checkpoint_every: steps between two checkpoints; there is one at the end of every epoch in any case.
    """

    def __init__(
        self, model, criterion, optimizer, schedule, train, validation,
        *, epochs, out, config, generator, console, device="cpu", average=None, checkpoint_every=None,
    ):  # fmt: skip
        self.model, self.criterion, self.optimizer, self.schedule = model, criterion, optimizer, schedule
        self.train, self.validation = train, validation
        self.epochs, self.out, self.config, self.generator = epochs, Path(out), config, generator
        self.console, self.device, self.average, self.checkpoint_every = console, device, average, checkpoint_every
        self.metrics = MetricsLog(self.out / METRICS)
        self.epoch = self.batch = 0
        self.best = {"epoch": 0, "val_acc": -1.0}
        self._signal = None
        self._given: tuple = ()  # the batch of the step under way
        optimizer.before_step = self._look_at_gradients
        self._open_epoch()

    @property
    def steps_done(self):
        """Optimizer steps since the beginning."""
        return self.epoch * len(self.train) + self.batch

    def run(self):
        """Train to the last epoch.

        Raises:
            Diverged: the loss or a gradient is not finite; the last checkpoint is untouched.
            Interrupted: SIGINT or SIGTERM came, and a checkpoint was written at the end of the step.
        """
        with self._signals(), np.errstate(all="ignore"):  # what comes of it is looked for before each update
            while self.epoch < self.epochs:
                self._train_epoch()
                self._close_epoch()
                if self._signal:  # it came after the last step
                    raise Interrupted(self._signal)

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
                self._given = x, labels
                loss, logits = train_step(self.model, self.criterion, self.optimizer, x, labels)
                if self.average:
                    self.average.update()
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

    def _look_at_gradients(self, optimizer):
        """Before an update: stop where a gradient is not finite, so that no weight ever is."""
        if (self.batch + 1) % SYNC_EVERY[self.device]:
            return
        if what := bad_parameter(optimizer.params.items()):
            where = first_bad_layer(self.model, self.criterion, *self._given) or what
            self._stop(f"{where} is not finite", self.batch + 1)

    def _stop(self, why, step):
        raise Diverged(
            f"{why} in step {step} of epoch {self.epoch + 1}, at learning rate {self.optimizer.lr:g}: try a lower --lr; "
            f"{self.out / checkpoint.LAST} holds the last good state, if any"
        )

    def _look(self, bar):
        if not math.isfinite(self.loss.value):
            self._stop(f"the loss is {self.loss.value}", self.batch)
        bar.set_postfix_str(
            f"loss {self.loss.value:.4f}, accuracy {self.accuracy.value:.4f}, lr {self.optimizer.lr:.4g}, "
            f"{self.pictures / self.seconds:.0f} pictures/s",
            refresh=False,
        )
        bar.update(self.batch - bar.n)

    def _close_epoch(self):
        """Validate, write the epoch's line, its checkpoint and the curves."""
        batches = self.console.follow(self.validation, "validation")
        with self.average.in_place() if self.average else nullcontext():  # the plain loss, as in the test
            val_loss, val_acc, _ = evaluate(self.model, CrossEntropyLoss(), batches, self.device)
        row = {
            "epoch": self.epoch + 1, "train_loss": self.loss.value, "train_acc": self.accuracy.value,
            "val_loss": val_loss, "val_acc": val_acc, "lr": self.schedule(self.steps_done - 1),
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
        arrays = {key: to_device(value, "cpu") for key, value in self._arrays().items()}
        header = {
            "config": self.config, "epoch": self.epoch, "batch": self.batch, "best": self.best,
            "loss": [float(self.loss.sum), self.loss.count], "accuracy": [float(self.accuracy.sum), self.accuracy.count],
            "seconds": self.seconds, "pictures": self.pictures,
            "generator": checkpoint.generator_state(self.generator),
        }  # fmt: skip
        return arrays, header

    def _parts(self):
        """What has arrays to keep, by the word that opens their keys in a checkpoint."""
        parts = {"model": self.model, "optimizer": self.optimizer}
        return parts | {"average": self.average} if self.average else parts

    def _arrays(self):
        return {
            f"{part}/{key}": value for part, what in self._parts().items() for key, value in what.state_dict().items()
        }

    def restore(self, arrays, header):
        """Go on from a checkpoint's content.

        Raises:
            CheckpointError: it is of another network or optimizer; nothing was changed then.
        """
        checkpoint.expect(arrays, self._arrays(), "the checkpoint is of another network or optimizer")
        for part, what in self._parts().items():
            what.load_state_dict(checkpoint.part(arrays, part))
        checkpoint.restore_generator(self.generator, header["generator"])
        self.epoch, self.batch, self.best = header["epoch"], header["batch"], header["best"]
        (self.loss.sum, self.loss.count), (self.accuracy.sum, self.accuracy.count) = header["loss"], header["accuracy"]
        self.seconds, self.pictures = header["seconds"], header["pictures"]
        self.metrics.truncate_to(self.epoch)  # a line that was written after this checkpoint will be written again

    @contextmanager
    def _signals(self):
        """SIGINT and SIGTERM wait for the end of the step; the handlers from before come back afterwards.

        A terminal that is closed (SIGHUP) ends nothing: the log in the folder goes on.
        """

        def remember(number, _frame):
            self._signal = number

        handlers: dict = {signal.SIGINT: remember, signal.SIGTERM: remember}
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = signal.SIG_IGN
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
