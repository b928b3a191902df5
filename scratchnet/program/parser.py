"""argparse, as train_cifar.py uses it: types of values with ranges, and errors of one line that say what would be right."""

import argparse
import difflib
import math
import os
from pathlib import Path

from scratchnet.program.console import Console


class UsageError(ValueError):
    """The command asks for something that cannot be had; the message says what would be right."""


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are UsageErrors and whose help survives a reader who leaves."""

    def error(self, message):  # noqa: D102
        raise UsageError(message.removeprefix("argument ").replace(": must", " must", 1))

    def print_help(self, file=None):  # noqa: D102
        Console().say(self.format_help().rstrip())


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Every help text ends in its default, but for plain switches and where it names the default itself."""

    def _get_help_string(self, action):
        silent = action.default in (None, argparse.SUPPRESS) or action.nargs == 0 and action.const is True
        return action.help + ("" if silent or "(default: " in action.help else " (default: %(default)s)")


def did_you_mean(unknown, flags):
    """What is wrong with an argument that is none of `flags`, in words."""
    if not unknown.startswith("-"):
        return f"unexpected {unknown!r}: every value stands behind its flag; --help lists them"
    near = difflib.get_close_matches(unknown.partition("=")[0], flags, 1)
    return f"there is no flag {unknown}: " + (f"did you mean {near[0]}?" if near else "--help lists them")


def whole(least, most=math.inf, word=None):
    """A whole number in least … most, or the word."""

    def read(text):
        if text == word:
            return word
        try:
            value = int(text)
        except ValueError:
            what = f"{word}, or a whole number" if word else "a whole number"
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}") from None
        if not least <= value <= most:
            limit = f"least {least}" if value < least else f"most {most}"
            raise argparse.ArgumentTypeError(f"must be at {limit}, got {text}")
        return value

    return read


def real(interval):
    """A number in an interval, which is written as in "[0, 1)"; NaN is in none."""
    low, high = map(float, interval[1:-1].split(","))

    def read(text):
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
        ends = (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")
        if not (low < value < high or ends):
            raise argparse.ArgumentTypeError(f"must be in {interval}, got {text}")
        return value

    return read


def path(text):
    """A path, in which ~ and ~name are home folders."""
    found = os.path.expanduser(text)
    if found.startswith("~"):
        raise argparse.ArgumentTypeError(f"must be a path; there is no home folder {text.partition('/')[0]}")
    return Path(found)
