"""--tensorboard: event files, for who looks at runs with TensorBoard."""

import time

from scratchnet.training.follow import Follower

FOLDER = "tensorboard"  # in that of the run
EVERY = 10  # steps between two points of the fine curves, at least
MISSING = (
    "tensorboard is missing: no event files are written; with the extra tensorboard, pip install -e '.[tensorboard]', "
    "they are"
)


def event_files(folder, step, console):
    """An `EventFiles` in the folder, for a run that has so many steps behind it; None, and a line, without tensorboard."""
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        console.say(MISSING)
        return None
    try:
        return EventFiles(EventFileWriter(str(folder)), step, console)
    except OSError as error:
        console.say(f"no event files for TensorBoard in {folder}: {error.strerror or error}")
        return None


class EventFiles(Follower):
    """Writes a run's numbers for TensorBoard.

    A run that was stopped may have written points that come again once it is resumed. So every file begins by saying from
    which step on what others have said is void (a SessionLog with the status START).

    Args:
        writer: tensorboard's `EventFileWriter`.
        step: how many steps the run has behind it.
        console: says when nothing can be written any more; that ends no training.
    """

    def __init__(self, writer, step, console):
        from tensorboard.compat.proto import event_pb2, summary_pb2

        self._event, self._log, self._summary = event_pb2.Event, event_pb2.SessionLog, summary_pb2.Summary
        self._writer, self._console, self._last = writer, console, step - EVERY
        self._write(step + 1, session_log=self._log(status=self._log.START))

    def step(self, row):
        """A look at the training."""
        if row["step"] - self._last >= EVERY:
            self._last = row["step"]
            self._scalars(
                row["step"],
                {
                    "loss/step": row["loss"],
                    "accuracy/step": row["accuracy"],
                    "learning_rate": row["lr"],
                    "pictures_per_second": row["images_per_second"],
                },
            )

    def epoch(self, step, row, result):
        """The end of an epoch."""
        names = {"train": "train", "validation": "val"}
        self._scalars(step, {f"loss/{name}": row[f"{field}_loss"] for name, field in names.items()})
        self._scalars(step, {f"accuracy/{name}": row[f"{field}_acc"] for name, field in names.items()})
        self._do(lambda: self._writer.flush())

    def tested(self, step, result):
        """The test of the best checkpoint."""
        self._scalars(step, {"loss/test": result.loss, "accuracy/test": result.accuracy})

    def close(self):
        """Write what is left."""
        self._do(lambda: self._writer.close())

    def _scalars(self, step, values):
        made = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=self._summary(value=made))

    def _write(self, step, **what):
        self._do(lambda: self._writer.add_event(self._event(wall_time=time.time(), step=step, **what)))

    def _do(self, act):
        if self._writer is None:
            return
        try:
            act()
        except OSError as error:
            self._writer = None
            self._console.say(f"TensorBoard's files cannot be written any more: {error.strerror or error}")
