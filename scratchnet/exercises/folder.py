"""Where a learner works: a folder for each exercise, with a file to fill in and a note of hints and of what is solved.

Nothing here writes over a learner's work.
"""

import hashlib
import json
from pathlib import Path

from scratchnet.exercises.source import write

NOTE = ".exercise.json"


class Refused(Exception):
    """What was asked for cannot be done: one sentence."""


class Place:
    """The folder of one exercise.

    Args:
        name: of the exercise.
        folder: as the learner gave it, or None: exercises/NAME, or where the file is found around here.
    """

    def __init__(self, name, folder=None):
        self.name = name
        if folder is None:
            usual = [Path("exercises", name), Path(name), Path()]
            self.folder = next((place for place in usual if (place / f"{name}.py").is_file()), usual[0])
        else:
            given = Path(folder)
            self.folder = given.parent if given.name == f"{name}.py" and not given.is_dir() else given

    @property
    def file(self):
        """The file to fill in."""
        return self.folder / f"{self.name}.py"

    def set_up(self, exercise, number, total, force=False):
        """Write the file; one that is there is left alone, or with `force` moved aside. Returns where it went, or None."""
        aside = None
        if self.file.exists():
            if not force:
                raise Refused(
                    f"{self.file} is there already and stays as it is: `check {self.name}` checks it, and --force begins "
                    "anew, moving it aside"
                )
            names = (self.file.with_suffix(f".{k}.py") for k in range(1, 10**6))
            aside = next(path for path in names if not path.exists())
            self.file.rename(aside)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.file.open("x", encoding="utf-8", newline="\n") as file:
            file.write(write(exercise, number, total))
        return aside

    def require_file(self):
        """Raise `Refused` where there is no file to check."""
        if not self.file.is_file():
            raise Refused(f"there is no {self.file}: set it up with `python -m scratchnet.exercises {self.name}`")

    # The note -----------------------------------------------------------------------------------------------------------

    def note(self):
        """What is noted; nothing where it cannot be read."""
        try:
            note = json.loads((self.folder / NOTE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def write_note(self, **changes):
        """Add to the note; a folder that cannot be written into keeps none."""
        try:
            text = json.dumps(self.note() | changes) + "\n"
            (self.folder / NOTE).write_text(text, encoding="utf-8")
        except OSError:
            pass

    def hints(self):
        """How many hints were taken."""
        count = self.note().get("hints", 0)
        return count if count in (0, 1, 2, 3) else 0

    def state(self):
        """One of "solved", "solved, changed since", "begun" and ""."""
        if not self.file.is_file():
            return ""
        solved = self.note().get("solved")
        if not solved:
            return "begun"
        return "solved" if solved == self.fingerprint() else "solved, changed since"

    def fingerprint(self):
        """Of the file as it is."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()
