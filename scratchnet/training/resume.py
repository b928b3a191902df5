"""Going on with a run: only with what it began with, or with what changes are asked for by name."""

from scratchnet.training.checkpoint import load_latest
from scratchnet.training.flags import UsageError


def resume(trainer, args, console):
    """Go on from the last checkpoint, if it is of this very command, or if changes are welcome."""
    found = load_latest(args.out, console.say)
    if found is None:
        console.say(f"nothing to resume in {args.out}: starting from the beginning")
        return
    arrays, header, path = found
    before = header["config"]
    changed = [key for key in trainer.config if trainer.config[key] != before.get(key) and key != "title"]
    if changed:
        differences = "; ".join(f"{key} was {before.get(key)!r}, now {trainer.config[key]!r}" for key in changed)
        why = ""
        if "epochs" in changed:
            why = (
                ". The schedule spreads over all epochs, so that a run that is made longer or shorter is not the run that "
                "would have had so many from the beginning"
            )
        if not args.resume_with_changes:
            raise UsageError(
                f"--resume: {path} is of another run: {differences}{why}. Give the same flags, or another --out, or accept "
                "the difference with --resume-with-changes"
            )
        if header["epoch"] + (header["batch"] > 0) > args.epochs:
            raise UsageError(
                f"--epochs: {path} has {header['epoch']} whole epochs behind it already, got {args.epochs}"
            )
        console.say(f"resuming with changes: {differences}{why}")
        if before.get("batch_size") != args.batch_size:
            header["batch"] = header["batch"] * before["batch_size"] // args.batch_size
    changes = before.get("changes", [])
    if changed:
        changes.append({"epoch": header["epoch"], "batch": header["batch"], "changed": differences})
    if changes:
        trainer.config["changes"] = changes
    trainer.restore(arrays, header)
    console.say(f"resuming {path}: epoch {trainer.epoch + 1}, after {trainer.batch} of its {len(trainer.train)} steps")
