"""Going on with a run: only with what it began with, or with what changes are asked for."""

from scratchnet.program.flags import UsageError
from scratchnet.training.checkpoint import load_latest

LENGTH = (
    ". The schedule spreads over all epochs, so that a run that is made longer or shorter is not the run that would have "
    "had so many from the beginning"
)


def resume(trainer, args, console):
    """Go on from the last checkpoint in `args.out`; where there is none, begin.

    Changes, where they are accepted, are kept in the configuration, so that no result hides them.

    Raises:
        UsageError: the run began with other flags, and `args.resume_with_changes` does not accept that.
        CheckpointError: no checkpoint can be read, or it is of another network.
    """
    found = load_latest(args.out, console.say)
    if found is None:
        console.say(f"nothing to resume in {args.out}: starting from the beginning")
        return
    arrays, header, path = found
    before = header["config"]
    changes = before.get("changes", [])
    if changed := _changes(before, trainer.config):
        if not args.resume_with_changes:
            raise UsageError(
                f"--resume: {path} is of another run: {changed}. Give the same flags, or another --out, or accept the "
                "difference with --resume-with-changes"
            )
        if header["epoch"] + (header["batch"] > 0) > args.epochs:
            raise UsageError(
                f"--epochs: {path} has {header['epoch']} whole epochs behind it already, got {args.epochs}"
            )
        header["batch"] = header["batch"] * before["batch_size"] // args.batch_size
        changes.append({"epoch": header["epoch"], "batch": header["batch"], "changed": changed})
        console.say(f"resuming with changes: {changed}")
    if changes:
        trainer.config["changes"] = changes
    trainer.restore(arrays, header)
    console.say(f"resuming {path}: epoch {trainer.epoch + 1}, after {trainer.batch} of its {len(trainer.train)} steps")


def _changes(before, now):
    """What differs between two configurations, in words; nothing where they agree."""
    changed = [key for key in now if now[key] != before.get(key) and key != "title"]
    differences = "; ".join(f"{key} was {before.get(key)!r}, now {now[key]!r}" for key in changed)
    return differences + (LENGTH if "epochs" in changed else "")
