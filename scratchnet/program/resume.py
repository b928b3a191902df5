"""Going on with a run: only with what it began with, or with what changes are asked for."""

import re

from scratchnet.parallel import ranks
from scratchnet.program.data import FED, completed
from scratchnet.program.flags import MODELS, NORMALISE, VARIANTS, UsageError
from scratchnet.training.atomic import atomic_file, read_regular
from scratchnet.training.checkpoint import CheckpointError, load_latest, part
from scratchnet.training.schema import SHA256, TEXT, Kind, check, number, one_of, whole

LENGTH = (
    ". The schedule spreads over all epochs, so that a run that is made longer or shorter is not the run that would have "
    "had so many from the beginning"
)
# What is believed of a checkpoint's configuration: what a network is built and fed by.
CONFIG = {
    "model": one_of(*MODELS),
    "variant": one_of(*VARIANTS), "width": number(1e-9, 1e6), "dropout": number(0, 1), "image_size": whole(1, 2**14),
    "normalise": one_of(*NORMALISE, "data"), "seed": whole(0, 2**128), "batch_size": whole(1), "title": TEXT,
    **FED, "data": {"name": TEXT, "sha256": SHA256} | FED["data"],
}  # fmt: skip
SMALLEST = 270_000  # weights of the smallest network at width 1, ResNet-20; they grow with the width's square
NEWER = {"ranks": 1, "local_batch_norm": False}  # fields that older configurations do not have
CHANGES = Kind(
    "a list of changes", lambda value: isinstance(value, list) and all(isinstance(one, dict) for one in value)
)
_EPOCH = re.compile(rb"epoch +(\d{1,9})/\d+  train loss ")  # as the trainer says it


def check_config(path, arrays, header):
    """Refuse a header that is not as this program writes it, before a network is built as it says.

    Raises:
        CheckpointError: the field, and what would be right; or the file is too small for a network of its width.
    """
    check(header, {"epoch": whole(), "config": CONFIG}, f"the header of {path}")
    width, values = header["config"]["width"], sum(array.size for array in part(arrays, "model").values())
    least = int(0.8 * SMALLEST * width**2)  # channels are rounded, but by less than that
    if width > 1 and values < least:
        raise CheckpointError(f"{path} holds {values:,} numbers, but a network of width {width:g} has over {least:,}")


def resume(trainer, args, console):
    """Go on from the last checkpoint in `args.out`; where there is none, begin.

    Changes, where they are accepted, are kept in the configuration, so that no result hides them. Another number of ranks
    is always accepted: it changes how sums are rounded, and nothing else. Files are the first rank's affair.

    Raises:
        UsageError: the run began with other flags, and `args.resume_with_changes` does not accept that.
        CheckpointError: no checkpoint can be read, or it is of another network.
    """
    found = ranks.from_first(lambda: load_latest(args.out, console.say))
    if found is None:
        ranks.from_first(lambda: _forget_epochs(args.out / "log.txt", trainer))
        console.say(f"nothing to resume in {args.out}: starting from the beginning")
        return
    arrays, header, path = found
    header["config"] = completed(header.get("config"))
    check_config(path, arrays, header)
    before = NEWER | header["config"]
    check(before, {"ranks": whole(1)}, f"{path}: its configuration")
    changes = before.get("changes", [])
    check(changes, CHANGES, f"{path}: the changes in its configuration")
    if changed := _changes(before, trainer.config):
        if not args.resume_with_changes:
            raise UsageError(
                f"--resume: {path} is of another run: {changed}. Give the same flags, or another --out, or accept the "
                "difference with --resume-with-changes"
            )
        check(header, {"batch": whole()}, f"the header of {path}")
        if header["epoch"] + (header["batch"] > 0) > args.epochs:
            raise UsageError(
                f"--epochs: {path} has {header['epoch']} whole epochs behind it already, got {args.epochs}"
            )
        header["batch"] = header["batch"] * before["batch_size"] // args.batch_size
        changes.append({"epoch": header["epoch"], "batch": header["batch"], "changed": changed})
        console.say(f"resuming with changes: {changed}")
    if before["ranks"] != ranks.size:
        changed = f"ranks was {before['ranks']}, now {ranks.size}"
        changes.append({"epoch": header["epoch"], "batch": header["batch"], "changed": changed})
        console.say(f"resuming on another number of ranks ({changed}): the same but for rounding")
    if changes:
        trainer.config["changes"] = changes
    try:
        trainer.restore(arrays, header)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    ranks.from_first(lambda: _forget_epochs(args.out / "log.txt", trainer))
    console.say(f"resuming {path}: epoch {trainer.epoch + 1}, after {trainer.batch} of its {len(trainer.train)} steps")


def _forget_epochs(log, trainer):
    """Take out of the log the lines of epochs that come again, and a torn line."""
    try:
        *lines, torn = read_regular(log).split(b"\n")
    except OSError:  # none, or a log that is no file: nothing to take back
        return
    kept = [line + b"\n" for line in lines if not _is_after(line, trainer.epoch)]
    if torn or len(kept) < len(lines):
        with atomic_file(log, check=trainer.record.check_folder) as file:
            file.writelines(kept)
        trainer.console.log_to(log)  # the new file


def _is_after(line, epoch):
    return (found := _EPOCH.match(line)) is not None and int(found[1]) > epoch


def _changes(before, now):
    """What differs between two configurations, in words; nothing where they agree."""
    before, now = ({**config, **_parts_of(config["data"])} for config in (before, now))
    changed = [key for key in now if now[key] != before.get(key) and key not in ("title", "ranks", "data")]
    differences = "; ".join(f"{key} was {before.get(key)!r}, now {now[key]!r}" for key in changed)
    return differences + (LENGTH if "epochs" in changed else "")


def _parts_of(data):
    """The data of a configuration as fields of it, without the names of a thousand classes."""
    classes = ", ".join(data["classes"])
    return {"data": None, "data's name": data["name"], "data's sha256": data["sha256"], "data's classes": classes}
