"""`python -m scratchnet.exercises`: see `command.py`."""

import signal
import sys

from scratchnet.exercises.command import main

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # formulas, on a console that has no Σ
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that leaves, as `head` does, ends it without a word
    sys.exit(main())
