"""Who follows a run of train_cifar.py beside its log: the page of --watch, the files of --tensorboard."""

import contextlib

from scratchnet.parallel import ranks
from scratchnet.program.events import FOLDER, event_files
from scratchnet.program.report import workers


@contextlib.contextmanager
def following(args, trainer, watch, console):
    """Let those follow the trainer that the flags ask for; gives a list of them.

    Args:
        args: the flags.
        trainer: where it stands as the run goes on.
        watch: the `Watch`, or None.
        console: says the page's address. It is a secret, so that no file keeps it.
    """
    followers = []
    if watch:
        counts = [len(part.dataset.labels) for part in (trainer.train, trainer.validation)]
        where = workers() if trainer.device == "cpu" else trainer.device
        watch.begin(trainer, [f"{counts[0]:,} training and {counts[1]:,} validation pictures", where, args.out])
        followers.append(watch)
        if watch.url:
            console.say(f"watch     {watch.url}", log=False)
    if args.tensorboard and not ranks.rank:
        files = event_files(args.out / FOLDER, trainer.steps_done, console)
        followers += [files] if files else []
    trainer.followers += followers
    try:
        yield followers
    finally:
        for follower in followers:
            follower.close()
