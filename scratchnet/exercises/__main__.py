"""`python -m scratchnet.exercises`: see `command.py`."""

import signal
import sys

from scratchnet.exercises.command import main

if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that leaves, as `head` does, ends it without a word
    sys.exit(main())
