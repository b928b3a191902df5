"""`python -m scratchnet.explore CHECKPOINT -o page.html`: one training step of a network, as a page to look at.

Exit codes as train_cifar.py's: 0 done; 1 a number is not finite, memory ran out, or the file could not be written; 2
something asked for cannot be had; 130 stopped by Ctrl-C.
"""

import sys
from pathlib import Path

from scratchnet.explore import explore
from scratchnet.program.ending import NOT_TO_BE_HAD
from scratchnet.program.parser import Formatter, Parser, UsageError, path, real, whole


def make_parser():
    """The command line."""
    parser = Parser(
        prog="python -m scratchnet.explore", description=(__doc__ or "").partition("\n")[0], formatter_class=Formatter,
        allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add(
        "checkpoint", type=path, metavar="CHECKPOINT", help="best.npz of train_cifar.py, or another file with a network"
    )
    add("-o", "--out", type=path, default=Path("explorer.html"), metavar="FILE", help="the page to write")
    add(
        "--data",
        type=path,
        metavar="DIR",
        help="its pictures, as train_cifar.py takes them; without them shapes are drawn",
    )
    add(
        "--picture", type=whole(0), nargs="+", default=[0], metavar="N",
        help="the first test picture to show, of those that follow one another; or several, which are shown",
    )  # fmt: skip
    add("--count", type=whole(1, 16), default=4, help="how many to show, where --picture names the first")
    add("--batch-size", type=whole(2, 1024), default=16, help="pictures of the training step")
    add("--lr", type=real("[0, 1e30]"), help="learning rate of the step (default: the checkpoint's)")
    return parser


def main(arguments=None):
    """Write the page; returns the exit code."""
    try:
        args = make_parser().parse_args(arguments)
        if args.checkpoint.resolve() == args.out.resolve():
            raise UsageError(f"-o {args.out} is the checkpoint itself: name another file")
        options = {"data": args.data, "pictures": args.picture, "batch_size": args.batch_size, "lr": args.lr}
        size, channels = explore(args.checkpoint, args.out, args.count, **options)
    except NOT_TO_BE_HAD as error:
        return say(error, 2)
    except FloatingPointError as error:
        return say(error, 1)
    except MemoryError as error:
        return say(str(error) or "out of memory: a smaller --batch-size takes less", 1)
    except OSError as error:
        return say(f"cannot use {error.filename or 'a file'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        return say("stopped by SIGINT", 130)
    few = f", of each array at most {channels} channels" if channels < 1_000_000 else ""
    print(f"{args.out}: {size / 1e6:.1f} MB{few}")
    return 0


def say(error, code):
    """One line on standard error; returns the code."""
    print(f"python -m scratchnet.explore: error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
