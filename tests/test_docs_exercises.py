"""docs/exercises.md: what stands there is what a learner sees. `python tests/test_docs_exercises.py` writes it anew."""

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import scratchnet
from scratchnet.exercises.catalogue import COURSE
from scratchnet.exercises.command import main
from scratchnet.exercises.source import write

PAGE = Path(scratchnet.__file__).parent.parent / "docs" / "exercises.md"
DIGITS = re.compile(r"to (\d+) digits|to (\d+) in the adjoint")
TABLE = "| exercise | chapter |\n| --- | --- |\n"


def session(text):
    """The page with what its commands print today, and today's list; run in the folder that one is in."""
    file, original = Path("exercises/linear/linear.py"), ""
    parts = re.split(r"(```(?:console|python)\n.*?```\n)", text, flags=re.S)
    for k, part in enumerate(parts):
        kind, _, body = part.removesuffix("```\n").partition("\n")
        if kind == "```python" and body.startswith("    "):  # what is put in the place of the line to be written
            original = original or file.read_text(encoding="utf-8")
            to_be_written = '    raise NotImplementedError("to be written")\n'
            file.write_text(original.replace(to_be_written, body), encoding="utf-8")
        elif kind == "```console":
            commands = [line for line in body.splitlines() if line.startswith("$ ")]
            parts[k] = "```console\n" + "\n".join(map(printed, commands)) + "```\n"
    head, _, rest = "".join(parts).partition(TABLE)
    rows = [
        f"| `{name}`: {exercise.teaches} | [{exercise.chapter}](course/{exercise.chapter}.md) |\n"
        for name, exercise in COURSE.items()
    ]
    return head + TABLE + "".join(rows) + "\n" + rest[re.search(r"^(?!\|)", rest, re.M).start() :].lstrip("\n")


def printed(command):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(command.split()[4:])
    return f"{command}\n{out.getvalue()}"


def test_the_page_shows_what_a_learner_sees(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = PAGE.read_text(encoding="utf-8")
    today = session(said)
    assert DIGITS.sub("digits", today) == DIGITS.sub("digits", said)
    for here, there in zip(DIGITS.findall(today), DIGITS.findall(said), strict=True):
        assert abs(int("".join(here)) - int("".join(there))) <= 2  # other CPUs round otherwise


def test_the_lines_to_be_written_are_those_of_the_file():
    (shown,) = re.findall(r"```python\n(def .*?)```\n", PAGE.read_text(encoding="utf-8"), re.S)
    assert shown in write(COURSE["linear"], 1, len(COURSE))


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        text = session(text)
        os.chdir("/")
    PAGE.write_text(text, encoding="utf-8")
    sys.exit(0)
