"""How a run ends that does not end well: one line, one exit code, and no rank that stays behind."""

import os
import traceback

from scratchnet.data.files import DataError
from scratchnet.data.pictures import PictureError
from scratchnet.device import DeviceError
from scratchnet.parallel import ranks
from scratchnet.program.folder import FolderError
from scratchnet.program.parser import UsageError
from scratchnet.training.checkpoint import CheckpointError
from scratchnet.training.signals import Interrupted
from scratchnet.training.trainer import Diverged

NOT_TO_BE_HAD = UsageError, DataError, CheckpointError, FolderError, PictureError, DeviceError


def fail(error, console):
    """Say why the run ends. Of several ranks the first one says it, all are told, and this process ends here.

    Args:
        error: the exception. One that nobody has foreseen is raised again, with its traceback; on a rank that does not
            speak, the others are told where it was.
        console: what says it.

    Returns:
        The exit code.
    """
    code, line, is_error = ending_of(error)
    if code is None:
        if ranks.speaks():
            raise error
        place = traceback.extract_tb(error.__traceback__)[-1]
        code, line = 1, f"{line} ({os.path.basename(place.filename)}, line {place.lineno})"
    elif is_error:
        console.error(f"train_cifar.py: error: {line}")
    else:
        console.say(line)
    if ranks.size > 1:
        ranks.leave(code, error if isinstance(error, ranks.RankFailed) else line)
    return code


def ending_of(error):
    """(exit code, what to say, whether that is an error); no code for what should not have happened."""
    if isinstance(error, NOT_TO_BE_HAD):
        return 2, str(error), True
    if isinstance(error, ranks.RankFailed):
        return error.exit_code, str(error), True
    if isinstance(error, Diverged):
        return 1, f"stopped: {error}", False
    if isinstance(error, MemoryError):
        return 1, str(error) or "out of memory", True
    if isinstance(error, OSError):
        return 1, f"cannot use {error.filename or 'a file'}: {error.strerror or error}", True
    if isinstance(error, Interrupted):
        return error.exit_code, f"{error}; the same command with --resume goes on from here", False
    if isinstance(error, KeyboardInterrupt):  # before the first step, or while the test runs
        return 130, "stopped by SIGINT", False
    return None, f"{type(error).__name__}: {error}", True
