"""`python -m scratchnet.exercises`: write the backward of a layer, and have it judged.

    python -m scratchnet.exercises                       the twelve, in order, and which are solved here
    python -m scratchnet.exercises NAME [FOLDER]         set one up: a file to fill in (default: exercises/NAME)
    python -m scratchnet.exercises check NAME [FOLDER]   how close it is, in words
    python -m scratchnet.exercises hint NAME [FOLDER]    one more of three hints

Exit code 0 where all is right, 1 where the backward is not, 2 where the command is not understood or cannot be done.
"""

import argparse
import difflib
import sys
import textwrap
from pathlib import Path

from scratchnet.exercises.catalogue import COURSE
from scratchnet.exercises.child import run
from scratchnet.exercises.folder import Place, Refused
from scratchnet.exercises.source import formula, solution

PROG = "python -m scratchnet.exercises"
WIDTH = 118


def main(arguments=None):
    """Do what the command says; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument(
        "words", nargs="*", metavar="list | NAME | check NAME | hint NAME", help="and a FOLDER behind it"
    )
    parser.add_argument("--force", action="store_true", help="set up anew: a file that is there is moved aside")
    parser.add_argument("--timeout", type=_seconds, default=20, help="seconds that a check may take (default: 20)")
    parser.add_argument("--level", type=int, choices=(1, 2, 3), help="which hints, without a note in the folder")
    args = parser.parse_args(arguments)
    word, *rest = args.words or ["list"]
    commands = {"check": _check, "hint": _hint}
    try:
        if word == "list":
            return _list(_folder(rest))
        if word not in commands:
            return _set_up(_known(word), _folder(rest), args)
        if not rest:
            raise Refused(f"`{word}` of which exercise? `{PROG}` lists them")
        return commands[word](_known(rest[0]), _folder(rest[1:]), args)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (Refused, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2


def _seconds(text):
    if not 0 < float(text) < 1e6:
        raise argparse.ArgumentTypeError(f"seconds must be a number above 0, got {text}")
    return float(text)


def _folder(words):
    if len(words) > 1:
        raise Refused(f"one folder is expected, got {' '.join(words)}")
    return words[0] if words else None


def _known(name):
    if name in COURSE:
        return name
    near = difflib.get_close_matches(name, [*COURSE, "list", "check", "hint"], 1, 0.4)
    meant = f" (did you mean {near[0]}?)" if near else ""
    raise Refused(f"there is no exercise {name!r}{meant}, they are {', '.join(COURSE)}")


def _list(folder):
    """Print the course."""
    solved = 0
    print(f" {'':>2}  {'exercise':<18} {'what it teaches':<84} here")
    for number, exercise in enumerate(COURSE.values(), 1):
        state = Place(exercise.name, folder and f"{folder}/{exercise.name}").state()
        solved += state.startswith("solved")
        print(f" {number:>2}  {exercise.name:<18} {exercise.teaches:<84} {state}".rstrip())
    print(f"\n{solved} of {len(COURSE)} are solved here. Begin one with `{PROG} NAME`.")
    return 0


def _set_up(name, folder, args):
    """Write the file to fill in."""
    place = Place(name, folder)
    exercise, number = COURSE[name], list(COURSE).index(name) + 1
    aside = place.set_up(exercise, number, len(COURSE), args.force)
    if aside:
        print(f"{place.file} as it was is now {aside}")
    behind = _behind(name, folder)
    print(f"{place.file}: write {exercise.todo}, then")
    print(f"    {PROG} check {behind}")
    print(f"    {PROG} hint {behind}")
    return 0


def _behind(name, folder):
    return f"{name} {folder}" if folder else name


def _hint(name, folder, args):
    """Print the hints that are due."""
    place, exercise = Place(name, folder), COURSE[name]
    level = args.level
    if not level:
        place.require_file()
        level = min(3, place.hints() + 1)
        place.write_note(hints=level)
    for k, hint in enumerate(exercise.hints[:level], 1):
        print("\n" * (k > 1) + f"Hint {k} of 3")
        for line in hint.splitlines():
            found = line.startswith("[[") and line.endswith("]]")
            print(f"    {formula(line[2:-2])}" if found else _filled(line))
    if level == 3:
        places = ", ".join(place for place, _ in solution(exercise)[:1])
        print(f"\nThat was the last. The whole stands in {places}.")
    return 0


def _check(name, folder, args):
    """Judge the file, and say what was found."""
    place = Place(name, folder)
    place.require_file()
    judged = place.fingerprint()  # of the file as it is now: it may be saved again while it is judged
    found = run(name, place.file, args.timeout)
    if found.printed:
        print("Your code printed, in its first call:")
        print(textwrap.indent(found.printed.rstrip("\n"), "    ") + "\n")
    if not found.written:
        print(f"{name}: {place.file}, {found.more[0]}.")
    else:
        print(f"{name}: {_headline(found)}\n")
        code = [text for text in found.more if text.startswith("    ")]  # the line at which it stops
        for holds, what, said in found.rows:
            lead = f"  {'yes' if holds else 'NO ':<3}  {what:<13} "
            print(_filled(said, lead))
            if not holds and code:
                print(" " * len(lead) + code.pop())
        for text in [*found.more, *(f"A warning, {said}" for said in found.warned)]:
            if not text.startswith("    "):
                print("\n" + _filled(text))
    if found.passed:
        place.write_note(solved=judged)
        _show_solution(name)
        return 0
    taken = place.hints()
    more = f"{PROG} hint {_behind(name, folder)}"
    print(f"\n{'The next hint' if taken else 'A hint'}: {more}" if taken < 3 else f"\nAll hints again: {more}")
    return 1


def _filled(text, lead=""):
    """Lines of at most WIDTH characters, all behind what leads the first."""
    return textwrap.fill(text, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead), break_long_words=False)


def _headline(found):
    """One sentence on all rows."""
    if found.passed:
        return "solved. All is right."
    right = [what for holds, what, _ in found.rows if holds and what.startswith("d") and what != "differences"]
    wrong = [what for holds, what, _ in found.rows if not holds]
    arrays = [what for what in wrong if what.startswith("d") and what != "differences"]
    if not right and not arrays:
        return "it does not run."
    if "runs" in wrong:
        return "it runs in some cases only."
    if not arrays:
        return f"the gradients are right, but not all of the rest: {', '.join(wrong)}."
    if len(right) > 4:
        return f"{len(right)} gradients are right, {_are(arrays)} not."
    if right:
        return f"{_are(right)} right, {_are(arrays)} not."
    return f"{_are(arrays)} not right yet."


def _are(names):
    return f"{', '.join(names[:-1])} and {names[-1]} are" if len(names) > 1 else f"{names[0]} is"


def _show_solution(name):
    """The library's own lines, and what comes next."""
    print("\nThe library's own lines:")
    for place, lines in solution(COURSE[name]):
        print(f"\n{place}")
        print("\n".join(f"    {line}".rstrip() for line in lines))
    names = list(COURSE)
    after = names[names.index(name) + 1 :]
    if after:
        print(f"\nNext: {after[0]}, {COURSE[after[0]].teaches}\n    {PROG} {after[0]}")
    else:
        print("\nThat was the last of them. The whole network is models/mobilenetv2.py.")


def check(name, file):
    """Judge a file as the command does; returns the exit code. A learner's file ends with it."""
    return main(["check", name, str(Path(file).resolve().parent)])
