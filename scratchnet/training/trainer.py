"""Training: the step, the epoch, the evaluation, and going on after a stop as if there had been none.

A run is a pure function of its configuration. Where it stands is (epoch, batch); what it has become is the network's
parameters and buffers, the optimizer's slots, the generator of dropout, and the sums of the epoch under way. All of that is
in a checkpoint, so that a run that is killed and resumed ends with the same bits as one that never was.

Of several ranks (parallel/ranks.py) each has its share of every batch, and all do the same: a signal, a number that is not
finite, what is in a file are known to all of them before anything follows from it. A checkpoint knows nothing of ranks.
"""

import hashlib
import math
import signal
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from scratchnet.array import to_device
from scratchnet.device import get_array_module
from scratchnet.layers.loss import CrossEntropyLoss
from scratchnet.parallel import ranks
from scratchnet.training import checkpoint
from scratchnet.training.archive import expect, not_finite
from scratchnet.training.evaluation import evaluate
from scratchnet.training.guard import bad_parameter, first_bad_layer
from scratchnet.training.metrics import Average
from scratchnet.training.record import Record, require_state
from scratchnet.training.recorded import RecordedForward, RecordedStep
from scratchnet.training.signals import Interrupted, waiting_signals
from scratchnet.training.step import train_step as train_step

SYNC_EVERY = {"cpu": 1, "cuda": 50}  # steps between two looks at the loss: on a GPU each one waits for the step to end


class Diverged(RuntimeError):
    """A number is no longer finite: the loss, or a gradient, which was then not applied."""


class Trainer:
    """One run: a network, an optimizer, a schedule, the batches, and the folder in which all of it is kept.

    Args:
        model, criterion, optimizer: as `train_step` takes them. While it runs, gradients are looked at before what the
            optimizer's `before_step` does.
        schedule: step -> learning rate.
        train, validation: `Batches`.
        epochs: how many in all.
        out: the folder of metrics.csv, last.npz, best.npz and curves.png.
        config: what was asked for, as a dict that JSON can hold; goes into every checkpoint. Of its keys only "title" is
            read, where it is there: it stands over the curves.
        generator: the numpy.random.Generator that dropout draws from.
        console: where to report: has `say(line)` and `bar(total, done, title)`, which gives a tqdm bar. Of several ranks
            each has one, and it is the console's affair that one of them is heard.
        device: "cpu" or "cuda", where the model is.
        average: a `WeightAverage` of the model, which is then what is validated; or None.
        checkpoint_every: steps between two checkpoints; there is one at the end of every epoch in any case.
        recorded: on a GPU, whether steps are recorded and replayed (`recorded.py`).
        followers: `Follower`s, who are told how the run goes.

    Attributes:
        record: the rows so far, which epoch is the best, and the files.
        forward: what computes logits where nothing is learnt: the model, or its `RecordedForward`.
    """

    def __init__(
        self, model, criterion, optimizer, schedule, train, validation,
        *, epochs, out, config, generator, console, device="cpu", average=None, checkpoint_every=None, recorded=True,
        followers=(),
    ):  # fmt: skip
        self.model, self.criterion, self.optimizer, self.schedule = model, criterion, optimizer, schedule
        self.train, self.validation = train, validation
        self.epochs, self.out, self.config, self.generator = epochs, Path(out), config, generator
        self.console, self.device, self.average, self.checkpoint_every = console, device, average, checkpoint_every
        recorded = recorded and device == "cuda" and ranks.size == 1
        self._half_step = RecordedStep(model, criterion) if recorded else None
        self.forward = RecordedForward(model) if recorded else model
        self._said_why_not = False
        self.followers = list(followers)
        self.record = Record(self.out, str(config.get("title", "")), console.say)
        self.epoch = self.batch = 0
        self._signals: list[int] = []
        self._given: tuple = ()  # the batch of the step under way
        self._open_epoch()

    @property
    def steps_done(self):
        """Optimizer steps since the beginning."""
        return self.epoch * len(self.train) + self.batch

    def run(self):
        """Train to the last epoch.

        Raises:
            Diverged: a number is not finite; the last checkpoint is untouched.
            Interrupted: SIGINT or SIGTERM came, to any rank, and a checkpoint was written at the end of the step.
            RankFailed: another rank has failed or ended, or the ranks have come to different states.
        """
        self._signals = []
        with waiting_signals(self._signals.append), self._watched_optimizer(), np.errstate(all="ignore"):
            self.record.require_best(*self._state())
            self.record.show()
            while self.epoch < self.epochs:
                self._train_epoch()
                self._close_epoch()
                *_, asked = self._on_all_ranks()
                if asked:  # it came after the last step
                    raise Interrupted(asked)

    # One epoch -------------------------------------------------------------------------------------------------------

    def _open_epoch(self):
        self.loss, self.accuracy, self.seconds, self.pictures = Average(), Average(), 0.0, 0

    def _train_epoch(self):
        title = f"epoch {self.epoch + 1}/{self.epochs}"
        started, before = time.perf_counter(), self.seconds
        with self.console.bar(len(self.train), self.batch, title) as bar:
            for x, labels in self.train.epoch(self.epoch, self.batch):
                self.optimizer.lr = self.schedule(self.steps_done)
                loss, right = self._step(to_device(x, self.device), to_device(labels, self.device))
                if self.average:
                    self.average.update()
                right, count, asked = self._on_all_ranks(right, len(labels))
                self.loss.add(loss, count)
                self.accuracy.add(right / count, count)
                self.pictures += count
                self.batch += 1
                self.seconds = before + time.perf_counter() - started
                if self.batch % SYNC_EVERY[self.device] == 0 or self.batch == len(self.train):
                    self._look(bar)
                if asked:
                    self.save()
                    raise Interrupted(asked)
                if self.checkpoint_every and self.steps_done % self.checkpoint_every == 0:
                    self.save()

    def _step(self, x, labels):
        """A step with this rank's pictures: the loss of all ranks', and how many of its own are right."""
        own = len(labels)
        with ranks.without_weight(not own):
            if not own:  # it computes any two pictures along, as every exchange needs every rank
                xp = get_array_module(x)
                x, labels = xp.zeros((2, *x.shape[1:]), x.dtype), xp.zeros(2, labels.dtype)
            self._given = x, labels
            if self._half_step:
                loss, logits = self._half_step(x, labels)
                self.optimizer.step()
            else:
                loss, logits = train_step(self.model, self.criterion, self.optimizer, x, labels)
        return loss, (logits.argmax(axis=1) == labels)[:own].sum()

    def _on_all_ranks(self, right=0, count=0):
        """Pictures that are right, pictures, and the signal that asks to stop, or 0; each of all ranks together."""
        last = self._signals[-1] if self._signals else 0
        kinds = signal.SIGTERM, signal.SIGINT
        right, count, *came = ranks.sum_over_ranks(right, count, *(int(last == kind) for kind in kinds))
        return right, count, next((kind for kind, times in zip(kinds, came, strict=True) if times), 0)

    def _look(self, bar):
        if self._half_step and self._half_step.why_not and not self._said_why_not:
            self.console.say(f"steps are not recorded, each kernel is launched from Python: {self._half_step.why_not}")
            self._said_why_not = True
        self._require_finite(self.loss.value, "the loss")
        bar.set_postfix_str(
            f"loss {self.loss.value:.4f}, accuracy {self.accuracy.value:.4f}, lr {self.optimizer.lr:.4g}, "
            f"{self.pictures / self.seconds:.0f} pictures/s",
            refresh=False,
        )
        bar.update(self.batch - bar.n)
        if self.followers:
            row = {
                "step": self.steps_done, "epoch": self.steps_done / len(self.train), "lr": self.optimizer.lr,
                "loss": self.loss.recent(), "accuracy": self.accuracy.recent(),
                "images_per_second": self.pictures / self.seconds,
            }  # fmt: skip
            for follower in self.followers:
                follower.step(row)

    def _close_epoch(self):
        """Validate, say the epoch's line, then write its files; resuming takes a line back that no checkpoint followed."""
        before = self._state()  # is finite: after validation one would not know what is not
        batches = self.console.follow(self.validation, "validation")
        with self.average.in_place() if self.average else nullcontext():  # the plain loss, as in the test
            seen = [follower.predicted for follower in self.followers]
            result = evaluate(self.model, CrossEntropyLoss(), batches, self.device, forward=self.forward, seen=seen)
        val_loss, val_acc, _ = result
        self._require_finite(val_loss, "the validation loss")
        self.record.require_best(*before)
        row = {
            "epoch": self.epoch + 1, "train_loss": self.loss.value, "train_acc": self.accuracy.value,
            "val_loss": val_loss, "val_acc": val_acc, "lr": self.schedule(self.steps_done - 1),
            "seconds": self.seconds, "images_per_second": self.pictures / max(self.seconds, 1e-9),
        }  # fmt: skip
        is_best = self.record.add(row)
        self.epoch, self.batch = self.epoch + 1, 0
        self._open_epoch()
        if self.record.check_folder:
            self.record.check_folder()
        self.console.say(
            f"epoch {row['epoch']:>3}/{self.epochs}  train loss {row['train_loss']:.4f} acc {row['train_acc']:.4f}  "
            f"val loss {val_loss:.4f} acc {val_acc:.4f}  lr {row['lr']:.2e}  {row['seconds']:.1f} s  "
            f"{row['images_per_second']:.0f} pictures/s" + ("  best" if is_best else "")
        )
        arrays, header = self._state()
        self.record.save(arrays, header, is_best)
        self.record.show()
        for follower in self.followers:
            follower.epoch(self.steps_done, row, result)

    # Numbers that are not finite -------------------------------------------------------------------------------------

    @contextmanager
    def _watched_optimizer(self):
        """Stop before an update where a gradient is not finite; after this look comes the user's own `before_step`."""
        theirs = self.optimizer.before_step

        def look(optimizer):
            is_due = (self.batch + 1) % SYNC_EVERY[self.device] == 0
            what = bad_parameter(optimizer.params.items()) if is_due else None
            if is_due and ranks.largest(what is not None):  # a bad weight may be one rank's alone
                found = first_bad_layer(self.model, self.criterion, *self._given)
                self._stop(found or what or "another rank's parameter", self.steps_done)
            if theirs:
                theirs(optimizer)

        self.optimizer.before_step = look
        try:
            yield
        finally:
            self.optimizer.before_step = theirs

    def _require_finite(self, value, what):
        if not math.isfinite(value):
            self._stop(what, self.steps_done - 1)

    def _stop(self, what, step):
        epoch, batch = divmod(max(step, 0), len(self.train))
        raise Diverged(
            f"{what} is not finite in step {batch + 1} of epoch {epoch + 1}, at learning rate {self.optimizer.lr:g}: try "
            f"a lower --lr; {self.out / checkpoint.LAST} holds the last good state, if any"
        )

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def _require_one_state(self, arrays):
        """Stop where ranks have come to different weights: they would add gradients that do not belong together."""
        if ranks.size == 1:
            return
        digest = hashlib.sha256()
        for array in arrays.values():
            digest.update(np.ascontiguousarray(array).data)
        if others := ranks.those_that_differ(digest.digest()):
            raise ranks.RankFailed(
                f"rank {', '.join(map(str, others))}: other weights than rank 0 after step {self.batch} of epoch "
                f"{self.epoch + 1}, by a fault of a machine or of this program; {self.out / checkpoint.LAST} holds the "
                "last good state, if any"
            )

    def save(self):
        """Write last.npz; the one before it is kept as last.previous.npz."""
        self.record.save(*self._state())

    def best_state(self):
        """(arrays, header) of what is to be tested: best.npz; where it is lost, the last state, and a line says so."""
        state = self._state()
        self.record.require_best(*state)
        if self.record.best["epoch"]:
            return self.record.load_best()
        self.console.say("there is no best checkpoint: the last state is tested instead")
        return state

    def _state(self):
        """The arrays, finite and the same on all ranks, and the header of best.npz; that of last.npz has more fields."""
        arrays = {key: to_device(value, "cpu") for key, value in self._arrays().items()}
        if bad := not_finite(arrays):
            self._stop(bad, self.steps_done - 1)
        self._require_finite(float(self.loss.sum), "the loss")
        self._require_one_state(arrays)
        header = {
            "config": self.config, "epoch": self.epoch, "batch": self.batch, "best": self.record.best,
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
        """Go on from the content of a last.npz.

        Raises:
            CheckpointError: it is of another network or optimizer, or no state of a run; nothing was changed then.
        """
        expect(arrays, self._arrays(), "the checkpoint is of another network or optimizer")
        require_state(arrays, header, self.epochs, len(self.train))
        checkpoint.restore_generator(self.generator, header["generator"])
        for part, what in self._parts().items():
            what.load_state_dict(checkpoint.part(arrays, part))
        self.record.restore(header)
        self.epoch, self.batch = header["epoch"], header["batch"]
        (self.loss.sum, self.loss.count), (self.accuracy.sum, self.accuracy.count) = header["loss"], header["accuracy"]
        self.seconds, self.pictures = header["seconds"], header["pictures"]
        for mean in (self.loss, self.accuracy):
            mean.recent()  # what comes after this is new
